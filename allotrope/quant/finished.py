"""Blocks that have been narrowed, as files: what is killed in the middle goes on behind the last of them.

A file is written whole or not at all. It holds a block's codes as they are stored, the wide weights that were changed
for them, and as JSON each weight's error and what was chosen.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.ops.packing import RawArray
from allotrope.quant.calibrate import Made, Tensors
from allotrope.quant.formats import Format, Quantised, pack, unpack
from allotrope.quant.report import WeightError, measure

_FACTS = "facts"
_SIDES = ("folded", "columns", "rows")


@dataclass(frozen=True, eq=False)
class Finished:
    """One block: codes by path, changed weights by slot, and what columns and rows of a path were scaled by."""

    quantised: Mapping[str, Quantised]
    folded: Tensors
    columns: Tensors
    rows: Tensors
    errors: tuple[WeightError, ...]
    facts: tuple[Mapping[str, Any], ...]

    def balanced(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        """The layer's weight, unrounded, as it fits what was folded around it."""
        if path in self.columns:
            weight = weight * self.columns[path]
        return weight / self.rows[path][:, None] if path in self.rows else weight

    @staticmethod
    def of(made: Made) -> Finished:
        """What was made, with its errors measured."""
        errors = tuple(measure(path, weight, codes) for path, (weight, codes) in made.codes.items())
        codes = {path: codes for path, (_, codes) in made.codes.items()}
        return Finished(codes, made.folded, made.columns, made.rows, errors, made.facts)

    def write(self, path: Path) -> None:
        """Replace the file."""
        arrays: dict[str, RawArray] = {
            f"{side}:{name}": _host(tensor) for side in _SIDES for name, tensor in getattr(self, side).items()
        }
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
            told = json.loads(arrays.pop(_FACTS).tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        quantised = {}
        for name in [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]:
            codes = unpack(tensors[f"{name}.codes"], formats[name])
            zeros = tensors.get(f"{name}.zeros")
            quantised[name] = Quantised(formats[name], codes, tensors[f"{name}.scales"], zeros)
        sides: dict[str, dict[str, torch.Tensor]] = {side: {} for side in _SIDES}
        for name, one in tensors.items():
            side, colon, rest = name.partition(":")
            if colon:
                sides[side][rest] = one
        errors = tuple(WeightError(**{**error, "outliers": tuple(error["outliers"])}) for error in told["errors"])
        return Finished(quantised, **sides, errors=errors, facts=tuple(told["facts"]))


def _host(tensor: torch.Tensor) -> RawArray:
    found: RawArray = tensor.detach().cpu().contiguous().numpy()
    return found
