"""Preflight, weights: every packed weight, unpacked, is the original's, rounded once to the dtype it is stored in.

Codes are as near to the original as the build says, weight by weight; what was folded is taken out first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from allotrope.artifact.engine import Engine
from allotrope.artifact.plan import Call, Plan, name
from allotrope.errors import EngineError
from allotrope.models.model import Model
from allotrope.ops import check
from allotrope.verify.effective import PARTS, Stored
from allotrope.verify.folds import Folds
from allotrope.verify.oracle import DTYPES
from allotrope.verify.original import as_torch
from allotrope.verify.places import block_of
from allotrope.verify.records import Check, Located
from allotrope.verify.shifts import Shifts

_VALUES = 1 << 22  # of a weight held in fp64 at a time
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAMES = (*PARTS, "weight", "bias")


def check_digests(engine: Engine) -> Check:
    """Whether every file holds the bytes that were written."""
    try:
        engine.check_digests()
    except EngineError as error:
        return Check("digests", False, str(error))
    return Check("digests", True, f"{len(engine.manifest.files)} files hold what was written")


def recorded(engine: Engine) -> dict[str, Mapping[str, Any]]:
    """What the build says of each narrow weight's error, by path."""
    said = engine.manifest.evidence.get("quantisation", {}).get("weights", [])
    return {str(error["path"]): error for error in said}


def check_weights(engine: Engine, model: Model) -> Check:
    """Compare bit for bit, one slot at a time, in no more memory than the largest slot takes."""
    looker = _Looker(engine, model)
    found, wide = list[Located](), 0
    for slot, op in _slots(engine.manifest.plan):
        before = looker.added
        complaint = looker.complaint(slot)
        wide += slot.rpartition(".")[2] not in PARTS and looker.added == before
        if complaint is not None:
            stem, _, last = slot.rpartition(".")
            path = stem if last in _NAMES else slot
            found.append(Located(block_of(path), op, path, complaint))
        engine.forget()
    if found:
        return Check("weights", False, found[0].detail, tuple(found))
    told = f"{wide} weights are the original's, bit for bit"
    shifted = f", a constant taken off the keys of {looker.shifted} blocks" if looker.shifted else ""
    if looker.stored.narrow:
        folded = f", {looker.folded} folded" if looker.folded else ""
        told = f"{wide} are the original's{folded}, {len(looker.stored.narrow)} in codes as near as recorded"
    return Check("weights", True, told + shifted)


def _slots(plan: Plan) -> Iterator[tuple[str, str]]:
    """Every slot, and the op of the first call that reads it."""
    users = dict[str, Call]()
    for call in plan.calls:
        for slot in call.ins.values():
            if slot.startswith("w:"):
                users.setdefault(name(slot), call)
    for held, weight in plan.weights.items():
        for slot, _ in weight.parts:
            yield slot, users[held].op if held in users else "weight"


class _Looker:
    """Asks one slot after the other what is wrong with it."""

    def __init__(self, engine: Engine, model: Model) -> None:
        self.stored, self._model, self._recorded = Stored(engine), model, recorded(engine)
        self._folds = Folds(self.stored, model, self._recorded)
        self._shifts = Shifts(engine, model)
        self.folded = self.shifted = self.added = 0

    def complaint(self, slot: str) -> str | None:
        """What is wrong with a slot, in words."""
        path, _, part = slot.rpartition(".")
        if path not in self.stored.narrow or part not in PARTS:
            return self._wide(slot)
        if part == "order":
            return self._order(slot)
        if part == "scales":
            return self._scales(path, self.stored.tensor(slot))
        return self._codes(path) if part == "codes" else None

    def _order(self, slot: str) -> str | None:
        """Each channel once."""
        order = self.stored.tensor(slot).long()
        whole = torch.equal(order.sort().values, torch.arange(len(order)))
        return None if whole else f"{slot} is no order of {len(order)} channels"

    def _scales(self, path: str, scales: torch.Tensor) -> str | None:
        """Every scale a number; of rounding none comes below zero, but others' codes may count downwards."""
        negative = (scales < 0) & (self.stored.slot(path) not in self._model.quantised)
        for wrong, what in ((~scales.isfinite(), "NaN or infinity"), (negative, "a negative scale")):
            if wrong.any():
                return f"{path}.scales hold {what}, first at {wrong.nonzero()[0].tolist()}"
        return None

    def _codes(self, path: str) -> str | None:
        """The codes' distance from what they stand for, beside what the build measured."""
        stored, order = self.stored, self.stored.narrow[path].order
        if order is not None and self._order(order) is not None:
            return None  # that is said of the order
        raw, tag = self._model.read(stored.slot(path))
        original = as_torch(raw, tag)
        shape = stored.decoded(path, torch.float32, slice(0, 1)).shape[1:]
        if (rows := len(stored.tensor(f"{path}.scales")), *shape) != tuple(original.shape):
            return f"{path}.codes make {[rows, *shape]}, the original's weight is {list(original.shape)}"
        said = self._recorded.get(path)
        if said is None:
            return f"the engine says nothing of the error of {path}.codes"
        signal = noise = 0.0
        for start in range(0, rows, step := max(1, _VALUES // shape[0])):
            here = slice(start, min(start + step, rows))
            found = stored.decoded(path, torch.float64, here)
            if not found.isfinite().all():
                return f"{path}.codes stand for NaN or infinity, first in row {start + _first_row(~found.isfinite())}"
            weight = self._folds.scaled(path, original[here].double(), here)
            signal += float(weight.square().sum())
            noise += float((found - weight).square().sum())
        return self._distance(path, (signal, noise), (float(said["signal"]), float(said["noise"])))

    def _distance(self, path: str, found: tuple[float, float], due: tuple[float, float]) -> str | None:
        """Sums of squares, of a weight and of its error; with scales taken out they are not known to the last digit."""
        error, expected = ((noise / signal) ** 0.5 if signal else 0.0 for signal, noise in (found, due))
        if self._folds.is_folded(path):
            right = check.no_worse(error, expected, self.stored.plan.dtype)
        else:
            right = all(check.same_sum(one, other) for one, other in zip(found, due, strict=True))
        if right:
            return None
        return f"{path}.codes are {error:.4g} from the original (relative RMS), the build measured {expected:.4g}"

    def _wide(self, slot: str) -> str | None:
        """Bit for bit the original's or, where a scale was folded into it, the original's times that."""
        if slot not in self._model.sources:
            return self._shifted(slot)
        raw, source = self._model.read(slot)
        part, tag = self.stored.array(slot)
        expected, actual = as_torch(raw, source).to(DTYPES[tag]), as_torch(part, tag)
        if expected.shape != actual.shape:
            return f"{slot} is {list(actual.shape)}, the original's is {list(expected.shape)}"
        bits = _BITS[actual.element_size()]
        differs = (actual.view(bits) != expected.view(bits)) & ~(actual.isnan() & expected.isnan())
        if differs.any() and self._shifts.known(slot):
            return self._shifted(slot)
        if differs.any() and not self._is_folded(slot, actual, as_torch(raw, source)):
            wrong, at = int(differs.sum()), differs.nonzero()[0].tolist()
            return f"{slot} differs from the original in {wrong} of {differs.numel()} values, first at {at}"
        if not actual.isfinite().all():
            at = (~actual.isfinite()).nonzero()[0].tolist()
            return f"{slot} holds NaN or infinity, first at {at}"
        self.folded += bool(differs.any())
        return None

    def _shifted(self, slot: str) -> str | None:
        """What is wrong with a bias that only a constant taken off the keys explains."""
        complaint = self._shifts.complaint(slot)
        self.shifted += complaint is None and slot.endswith(".attn.k.bias")
        self.added += complaint is None
        return complaint

    def _is_folded(self, slot: str, actual: torch.Tensor, original: torch.Tensor) -> bool:
        """Whether it is what the scales make of it that the layers beside it were built with."""
        expected = self._folds.applied(slot, original.double())
        if expected is None:
            return False
        same = check.compare(expected, expected)
        return check.within(check.compare(actual, expected), same, self.stored.array(slot)[1]) is None


def _first_row(wrong: torch.Tensor) -> int:
    return int(wrong.any(1).nonzero()[0])
