"""torch's product of bf16 rows with int8 codes on a CPU, which widens them in registers: no weight is ever laid down.

At a row or a few it reads half of what bf16 would, and is several times faster than decoding first; at many rows a
matrix product of decoded weights overtakes it. torch gives the sums, rounded to bf16; the scales are applied here, in
fp32, for it would round them to bf16 as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.functional import aligned as lying_well
from allotrope.ops.linear_codes.decoded import take
from allotrope.ops.linear_codes.shape import activations, aligned, unfit

_ROWS = 64  # at a time
_COLUMNS = 32  # codes that it loads at a time, without looking whether the row goes on


def _refuses(problem: Problem, device: Device) -> str | None:
    complaint = unfit(problem)
    if complaint is not None:
        return complaint
    if device.kind != "cpu" or "avx512f" not in device.features:
        return "torch has this product for CPUs with AVX-512"
    if problem.dtype != "bf16" or activations(problem) != "none":
        return "it multiplies bf16 with int8, and is slow or wrong with anything else"
    if problem.params["format"] != "int8" or problem.axes["groups"] > 1:
        return "it takes int8 weights with one scale per row"
    if problem.axes["in"] % _COLUMNS:
        return f"it reads {_COLUMNS} columns at a time, past the end of a row of {problem.axes['in']}"
    return None


def _room(problem: Problem, device: Device) -> int:
    into, out = problem.axes["in"], problem.axes["out"]
    rows = min(_ROWS, problem.axes["rows"])
    return aligned(2 * out) + aligned(2 * rows * into) + 4 * rows * out


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    if workspace is None:
        raise ValueError("torch_int8pack needs its workspace")
    # It loads whole registers from addresses that it takes to be aligned, and the process dies where they are not.
    weight = lying_well(ins["codes"].view(torch.int8))
    most = min(_ROWS, len(ins["x"]))
    ones, room = take(workspace, torch.bfloat16, 1, len(weight))
    given, room = take(room, torch.bfloat16, most, weight.shape[1])
    scaled, _ = take(room, torch.float32, most, len(weight))
    ones.fill_(1)
    for start in range(0, len(ins["x"]), most):
        x, target = ins["x"][start : start + most], out["out"][start : start + most]
        sums = torch._weight_int8pack_mm(given[: len(x)].copy_(x), weight, ones[0])
        found = scaled[: len(x)].copy_(sums).mul_(ins["scales"].view(1, -1))
        target.copy_(found.add_(ins["bias"]) if "bias" in ins else found)


INT8_PACK = FunctionTactic(
    "linear_codes",
    "torch_int8pack",
    _run,
    dict.fromkeys(("codes", "scales", "zeros", "bias"), "rows"),
    _refuses,
    scratch=_room,
    capturable=False,
)
