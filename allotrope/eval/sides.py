"""The two that are compared: an engine as it is served, and its original in transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allotrope import tokenizers
from allotrope.artifact import manifest
from allotrope.errors import UsageError
from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.models.model import Model
from allotrope.runtime.opening import Opened, open_folder
from allotrope.runtime.options import RuntimeOptions
from allotrope.tokenizers import Tokenizer
from allotrope.verify.effective import is_quantised
from allotrope.verify.oracle import Oracle
from allotrope.verify.original import FINER, oracle
from allotrope.verify.session import check_alike, open_original

PRECISION = "fp32"  # of the original: what narrower formats cost shows against it


@dataclass(frozen=True)
class Sides:
    """Both sides, opened. `context` is the longest sequence for which they are the same model."""

    opened: Opened
    device: Device
    model: Model
    original: Oracle
    tokenizer: Tokenizer  # the engine's, which reads texts of any length
    context: int

    @property
    def quantised(self) -> bool:
        """Whether the engine stores anything in less than it computes in."""
        return is_quantised(self.opened.engine.manifest.plan)

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end a text, on either side."""
        return frozenset(self.opened.limits.eos_ids)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.opened.executor.close()

    def judges(self) -> tuple[Oracle, Oracle]:
        """The original in the precision that counts as the truth for the engine's dtype, and in that dtype itself."""
        dtype = self.opened.engine.manifest.dtype
        finer = oracle(self.model, FINER[dtype], self.device)
        return finer, oracle(self.model, dtype, self.device, finer=finer)


def open_sides(folder: Path, options: RuntimeOptions, original: str | None, *, allow_pickle: bool) -> Sides:
    """Open the engine in `folder`, and the original named or, with None, the one that it was built from."""
    described = manifest.read(folder)
    opened = open_folder(folder, options)
    engine = opened.engine
    try:
        if not opened.tokenizer.reads_text:
            raise UsageError("the engine has no tokenizer", where=str(folder), remedy="build it from one that has")
        model = open_original(engine, original, allow_pickle=allow_pickle)
        check_alike(model, described.plan)
        device = detect(str(described.device["kind"]) if options.device == "auto" else options.device)
        known, longest = model.family.oracle.max_len(model.config), opened.limits.max_len
        return Sides(
            opened,
            device,
            model,
            oracle(model, PRECISION, device),
            tokenizers.load(engine.tokenizer_dir, described.plan.vocab),
            longest if known is None else min(longest, known),
        )
    except BaseException:
        opened.executor.close()
        raise


def described(sides: Sides) -> dict[str, Any]:
    """Which two these are, for a result."""
    return {
        "engine": str(sides.opened.engine.path),
        "original": sides.model.checkpoint.origin,
        "dtype": sides.opened.engine.manifest.dtype,
        "original_dtype": PRECISION,
    }
