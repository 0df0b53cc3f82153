"""Blocks that have been narrowed, as files: what is killed in the middle goes on behind the last of them.

A file is written whole or not at all. It holds a block's codes as they are stored, the wide weights that were changed
for them, and as JSON each weight's error and what was chosen.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.ops.packing import RawArray
from allotrope.quant.calibrate import Made
from allotrope.quant.formats import Format, Quantised, pack, unpack
from allotrope.quant.report import WeightError, measure

_FACTS, _FOLDED = "facts", "folded:"


class Finished:
    """One block: `quantised` by path, `folded` by slot, `errors` and `facts`."""

    def __init__(
        self,
        quantised: Mapping[str, Quantised],
        folded: Mapping[str, torch.Tensor],
        errors: tuple[WeightError, ...],
        facts: tuple[Mapping[str, Any], ...],
    ) -> None:
        self.quantised, self.folded, self.errors, self.facts = quantised, folded, errors, facts

    @staticmethod
    def of(made: Made) -> Finished:
        """What was made, with its errors measured."""
        errors = tuple(measure(path, weight, codes) for path, (weight, codes) in made.codes.items())
        return Finished({path: codes for path, (_, codes) in made.codes.items()}, made.folded, errors, made.facts)

    def write(self, path: Path) -> None:
        """Replace the file."""
        arrays: dict[str, RawArray] = {_FOLDED + slot: _host(tensor) for slot, tensor in self.folded.items()}
        for name, quantised in self.quantised.items():
            arrays[f"{name}.codes"] = _host(pack(quantised.codes, quantised.format))
            arrays[f"{name}.scales"] = _host(quantised.scales)
            if quantised.zeros is not None:
                arrays[f"{name}.zeros"] = _host(quantised.zeros)
        told = {"errors": [asdict(error) for error in self.errors], "facts": self.facts}
        arrays[_FACTS] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)

    @staticmethod
    def read(path: Path, formats: Mapping[str, Format], device: str) -> Finished | None:
        """What the file has; None if there is none, or none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: np.asarray(found[name]) for name in found.files}
        except (OSError, ValueError, zipfile.BadZipFile):
            return None
        told = json.loads(arrays.pop(_FACTS).tobytes())
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        quantised = {}
        for name in [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]:
            codes = unpack(tensors[f"{name}.codes"], formats[name])
            zeros = tensors.get(f"{name}.zeros")
            quantised[name] = Quantised(formats[name], codes, tensors[f"{name}.scales"], zeros)
        folded = {name.removeprefix(_FOLDED): one for name, one in tensors.items() if name.startswith(_FOLDED)}
        errors = tuple(WeightError(**{**error, "outliers": tuple(error["outliers"])}) for error in told["errors"])
        return Finished(quantised, folded, errors, tuple(told["facts"]))


def _host(tensor: torch.Tensor) -> RawArray:
    found: RawArray = tensor.detach().cpu().contiguous().numpy()
    return found
