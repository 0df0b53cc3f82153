"""The linear layer added to the residual by torch's matrix product itself: one kernel where there is no bias."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic


def _add(out: Tensor, ins: Mapping[str, Tensor], weight: Tensor) -> None:
    """`weight` as [in, out]."""
    residual = ins["residual"]
    if out.data_ptr() != residual.data_ptr():
        out.copy_(residual)
    if "bias" in ins:
        out.add_(ins["bias"])
    out.addmm_(ins["x"], weight)


def _rows(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _add(out["out"], ins, ins["weight"].t())


def _cols(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _add(out["out"], ins, ins["weight"])


def _library(problem: Problem, device: Device) -> str:
    return "a library's matrix product changes a row's bits with the number of rows"


TACTICS = (
    FunctionTactic("linear_add", "torch_mm", _rows, {"weight": "rows", "bias": "rows"}, rowwise=_library),
    FunctionTactic("linear_add", "torch_mm_cols", _cols, {"weight": "cols", "bias": "rows"}, rowwise=_library),
)
