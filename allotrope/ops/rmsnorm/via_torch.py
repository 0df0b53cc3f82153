"""RMSNorm with torch: its own function, and one composed of elementwise passes and a mean, in fp32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic, aligned

_SERIAL = 32768  # elements: torch sums a single longer row on the CPU in one piece per thread


def _indivisible(problem: Problem, device: Device) -> str | None:
    heads, width = int(problem.params.get("heads", 1)), problem.axes["width"]
    return f"{heads} heads do not divide a row of {width}" if width % heads else None


def _fused(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> Mapping[str, Tensor]:
    given = {name: aligned(value) for name, value in ins.items()} if ins["x"].is_cuda else ins
    parts = torch.unflatten(given["x"], -1, (int(params["heads"]), -1))
    return {"out": F.rms_norm(parts, parts.shape[-1:], given.get("weight"), float(params["eps"])).flatten(-2)}


def _scratch(problem: Problem, device: Device) -> int:
    return 4 * problem.axes["rows"] * (2 * problem.axes["width"] + int(problem.params.get("heads", 1)))


def _composed(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    if workspace is None:
        raise ValueError("the composed rmsnorm needs its workspace")
    (rows, width), heads = ins["x"].shape, int(params["heads"])
    scratch = workspace[: 4 * rows * (2 * width + heads)].view(torch.float32)
    wide, squares = scratch[: 2 * rows * width].view(2, rows, heads, width // heads)
    moment = scratch[2 * rows * width :].view(rows, heads, 1)
    wide.copy_(torch.unflatten(ins["x"], -1, (heads, -1)))
    torch.mean(torch.mul(wide, wide, out=squares), -1, keepdim=True, out=moment)
    wide.mul_(moment.add_(float(params["eps"])).rsqrt_())
    if "weight" in ins:
        wide.mul_(ins["weight"])
    out["out"].copy_(wide.flatten(-2))


def _mixes(problem: Problem, device: Device) -> str | None:
    if device.kind != "cpu":
        return "torch's sum on CUDA shapes its blocks by the number of rows"
    if problem.axes["width"] >= _SERIAL:
        return "torch splits the sum of a single long row over its threads"
    return None


def _fused_mixes(problem: Problem, device: Device) -> str | None:
    # on CUDA a kernel of its own with one block per row; on the CPU it is composed inside
    return _mixes(problem, device) if device.kind == "cpu" else None


TACTICS = (
    FunctionTactic("rmsnorm", "torch", _fused, {"weight": "rows"}, _indivisible, _fused_mixes),
    FunctionTactic("rmsnorm", "torch_composed", _composed, {"weight": "rows"}, _indivisible, _mixes, _scratch),
)
