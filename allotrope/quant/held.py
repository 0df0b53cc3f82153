"""Weights that a checkpoint holds in codes already: the format that each has here, and the same numbers in it.

    uint4, zeros                  as they are             int4 with zeros
    int4, zeros     + 8           both                    int4 with zeros
    group 256                     256 = 2 · 128           two groups of 128 with one scale
    scales in bf16 and fp32       as fp16 if that is exact, else as fp32
    in act-order                  columns group by group, and the order in which the input's are to come

Nothing is rounded: what a weight means is the same bit for bit, or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Plan
from allotrope.models.dtypes import cast
from allotrope.models.model import Model
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.stored import PER_CHANNEL, Stored
from allotrope.quant.formats import GROUPS, Format, Name, Quantised

Array = np.ndarray[Any, Any]
_NAMES: Mapping[str, Name] = {"uint4": "int4", "int4": "int4", "int8": "int8", "fp8": "fp8"}
_SIGN = 8  # int4's codes and zeros, when they count from 0 and when from −8


@dataclass(frozen=True)
class Held:
    """The linear layers whose weights are codes already, by path: the format of each, or why there is none for it."""

    formats: Mapping[str, Format]
    reasons: Mapping[str, str]
    activations: str | None  # in which they are multiplied


def held(model: Model, plan: Plan) -> Held | None:
    """What the checkpoint has in codes; None if it has none."""
    stored = model.stored_as
    if stored is None:
        return None
    formats: dict[str, Format] = {}
    reasons: dict[str, str] = {}
    for call in plan.calls:
        slot = plans.name(call.ins["weight"]) if call.op == "linear" else ""
        if slot in model.quantised:
            found = _format(stored, plan.weights[slot].parts[0][1][1])
            if isinstance(found, Format):
                formats[call.path] = found
            else:
                reasons[call.path] = found
    return Held(formats, reasons, stored.activations)


def _format(stored: Stored, width: int) -> Format | str:
    if stored.number not in _NAMES or (stored.number == "int8" and not stored.symmetric):
        return f"{stored.words} have zero points, which no format of 8 bits has"
    group = None if stored.group in (PER_CHANNEL, width) else _split(stored.group)
    if group == 0:
        allowed = ", ".join(map(str, GROUPS))
        return f"{stored.words} are in groups that are no multiple of {allowed}"
    if group is not None and stored.number == "fp8":
        return f"{stored.words} are in groups, and fp8 has one scale per row"
    return Format(_NAMES[stored.number], group, stored.symmetric)


def _split(group: int) -> int:
    """The largest of our groups that divides theirs; 0: none does."""
    return max((ours for ours in GROUPS if group % ours == 0), default=0)


def repack(codes: Codes, form: Format) -> tuple[Quantised, Array | None]:
    """The same weight in `form`, which `held` gave for it, and where each of its columns is to find its input."""
    numbers, zeros, order = codes.codes, codes.zeros, None
    if codes.order is not None:
        order = np.argsort(codes.order, kind="stable").astype(np.int32)
        numbers = numbers[:, order]
    if zeros is not None and codes.number == "int4":
        numbers, zeros = numbers + np.int8(_SIGN), (zeros + np.int8(_SIGN)).astype(np.uint8)
    times = form.groups(numbers.shape[1]) // codes.scales.shape[1]
    scales = cast(codes.scales, codes.scale_dtype, "fp32")
    half = cast(scales, "fp32", "fp16")
    if form.group is not None and np.array_equal(cast(half, "fp16", "fp32"), scales):
        scales = half
    elif form.group is not None:
        form = replace(form, fp32_scales=True)
    made = Quantised(
        form,
        _tensor(numbers).view(form.code_dtype),
        _tensor(np.repeat(scales, times, axis=1)),
        None if zeros is None else _tensor(np.repeat(zeros, times, axis=1)),
    )
    return made, order


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
