"""The rotation with torch: elementwise, in fp32, rounded once; and in fewer kernels, with the angles kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.rotary import misfit, turns


def _refuses(problem: Problem, device: Device) -> str | None:
    return misfit(problem)


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    head_dim, dim = int(params["head_dim"]), int(params["dim"])
    x, result = (tensor.view(len(tensor), -1, head_dim) for tensor in (ins["x"], out["out"]))
    cos, sin = (part[:, None] for part in turns.angles(ins, params))
    first, second = x[..., : dim // 2], x[..., dim // 2 : dim]
    result[..., : dim // 2] = first * cos - second * sin
    result[..., dim // 2 : dim] = second * cos + first * sin
    if dim < head_dim:
        result[..., dim:] = x[..., dim:]


def _matrices_refuse(problem: Problem, device: Device) -> str | None:
    return _refuses(problem, device) or turns.matrices_refuse(problem, device)


def _library(problem: Problem, device: Device) -> str:
    return "a library's batched product may change a row's bits with the number of rows"


TACTICS = (
    FunctionTactic("rotary", "torch", _run, refuses=_refuses),
    FunctionTactic("rotary", "torch_tables", turns.by_tables, refuses=_refuses),
    FunctionTactic(
        "rotary", "torch_matrices", turns.by_matrices, refuses=_matrices_refuse, rowwise=_library, version=2
    ),
)
