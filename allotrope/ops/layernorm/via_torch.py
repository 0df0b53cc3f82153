"""LayerNorm with torch: its fused kernel, and one composed of elementwise passes and two means, in fp32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic, aligned

_SERIAL = 32768  # elements: torch sums a single longer row on the CPU in one piece per thread


def _fused(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> Mapping[str, Tensor]:
    given = {name: aligned(value) for name, value in ins.items()} if ins["x"].is_cuda else ins
    x = given["x"]
    return {"out": F.layer_norm(x, x.shape[-1:], given.get("weight"), given.get("bias"), float(params["eps"]))}


def _scratch(problem: Problem, device: Device) -> int:
    rows, width = problem.axes["rows"], problem.axes["width"]
    return 4 * rows * (2 * width + 1)


def _composed(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    if workspace is None:
        raise ValueError("the composed layernorm needs its workspace")
    rows, width = ins["x"].shape
    scratch = workspace[: 4 * rows * (2 * width + 1)].view(torch.float32)
    wide, squares = scratch[: 2 * rows * width].view(2, rows, width)
    moment = scratch[2 * rows * width :].view(rows, 1)
    wide.copy_(ins["x"])
    wide.sub_(torch.mean(wide, -1, keepdim=True, out=moment))
    torch.mean(torch.mul(wide, wide, out=squares), -1, keepdim=True, out=moment)
    wide.mul_(moment.add_(float(params["eps"])).rsqrt_())
    if "weight" in ins:
        wide.mul_(ins["weight"])
    if "bias" in ins:
        wide.add_(ins["bias"])
    out["out"].copy_(wide)


def _composed_mixes(problem: Problem, device: Device) -> str | None:
    if device.kind != "cpu":
        return "torch's sum on CUDA shapes its blocks by the number of rows"
    if problem.axes["width"] >= _SERIAL:
        return "torch splits the sum of a single long row over its threads"
    return None


TACTICS = (
    # one row at a time on the CPU, one block per row on CUDA: nothing of another row comes in
    FunctionTactic("layernorm", "torch", _fused, {"weight": "rows", "bias": "rows"}),
    FunctionTactic(
        "layernorm",
        "torch_composed",
        _composed,
        {"weight": "rows", "bias": "rows"},
        rowwise=_composed_mixes,
        scratch=_scratch,
    ),
)
