"""Preflight, weights: every packed weight, unpacked, is the original's, rounded once to the engine's dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from allotrope.artifact.engine import Engine
from allotrope.artifact.layout import stored_dtype
from allotrope.artifact.plan import Call, name
from allotrope.errors import EngineError
from allotrope.models.model import Model
from allotrope.ops.packing import PACKINGS
from allotrope.verify.oracle import DTYPES
from allotrope.verify.original import as_torch
from allotrope.verify.places import block_of
from allotrope.verify.records import Check, Located

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_digests(engine: Engine) -> Check:
    """Whether every file holds the bytes that were written."""
    try:
        engine.check_digests()
    except EngineError as error:
        return Check("digests", False, str(error))
    return Check("digests", True, f"{len(engine.manifest.files)} files hold what was written")


def check_weights(engine: Engine, model: Model) -> Check:
    """Compare bit for bit, one slot at a time, in no more memory than the largest slot takes."""
    found, count = list[Located](), 0
    users = _users(engine.manifest.plan.calls)
    for weight, slot, part, tag in _parts(engine):
        count += 1
        complaint = _complaint(model, slot, part, tag)
        if complaint is not None:
            path = slot.removesuffix(".weight").removesuffix(".bias")
            op = users[weight].op if weight in users else "weight"
            found.append(Located(block_of(path), op, path, complaint))
        engine.forget()
    if found:
        return Check("weights", False, found[0].detail, tuple(found))
    return Check("weights", True, f"{count} weights are the original's, bit for bit")


def _parts(engine: Engine) -> Iterator[tuple[str, str, np.ndarray[tuple[int, ...], np.dtype[np.generic]], str]]:
    plan = engine.manifest.plan
    for weight, spec in plan.weights.items():
        shapes = [shape for _, shape in spec.parts]
        unpacked = PACKINGS[spec.packing].unpack(engine.array(weight), shapes)
        for (slot, _), part in zip(spec.parts, unpacked, strict=True):
            yield weight, slot, part, stored_dtype(plan, spec)


def _users(calls: tuple[Call, ...]) -> dict[str, Call]:
    """For each weight the first call that reads it."""
    found: dict[str, Call] = {}
    for call in calls:
        for slot in call.ins.values():
            if slot.startswith("w:"):
                found.setdefault(name(slot), call)
    return found


def _complaint(
    model: Model, slot: str, part: np.ndarray[tuple[int, ...], np.dtype[np.generic]], tag: str
) -> str | None:
    if slot not in model.sources:
        return f"{slot} is no weight of the original"
    raw, source = model.read(slot)
    expected, actual = as_torch(raw, source).to(DTYPES[tag]), as_torch(part, tag)
    if expected.shape != actual.shape:
        return f"{slot} is {list(actual.shape)}, the original's is {list(expected.shape)}"
    bits = _BITS[actual.element_size()]
    differs = (actual.view(bits) != expected.view(bits)) & ~(actual.isnan() & expected.isnan())
    if differs.any():
        wrong, at = int(differs.sum()), differs.nonzero()[0].tolist()
        return f"{slot} differs from the original in {wrong} of {differs.numel()} values, first at {at}"
    if not actual.isfinite().all():
        at = (~actual.isfinite()).nonzero()[0].tolist()
        return f"{slot} holds NaN or infinity, first at {at}"
    return None
