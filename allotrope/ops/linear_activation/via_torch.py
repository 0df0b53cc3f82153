"""The activation in the matrix product's last step, as cuBLASLt offers it, after a bias: gelu_tanh and relu.

And the same in two steps, for wherever it is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.activation import pieces
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic


def _refuses(problem: Problem, device: Device) -> str | None:
    if device.kind != "cuda":
        return "off CUDA torch activates after the product, and with another gelu"
    if problem.params.get("kind") not in ("gelu_tanh", "relu"):
        return f"the product's last step can be gelu_tanh or relu, not {problem.params.get('kind')}"
    if problem.params["kind"] == "gelu_tanh" and problem.dtype == "fp32":
        return "the product's last step takes a quick tanh, whose errors are larger than fp32's (2.5e-6)"
    if "bias" not in problem.present:
        return "the product's last step takes a bias together with the activation"
    return None


def _product(out: Tensor, ins: Mapping[str, Tensor], weight: Tensor, params: Mapping[str, Scalar]) -> None:
    """`weight` as [in, out]."""
    gelu = params["kind"] == "gelu_tanh"
    torch.ops.aten._addmm_activation.out(ins["bias"], ins["x"], weight, use_gelu=gelu, out=out)


def _rows(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _product(out["out"], ins, ins["weight"].t(), params)


def _cols(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _product(out["out"], ins, ins["weight"], params)


def _in_two(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    result, weight = out["out"], ins["weight"].t()
    if "bias" in ins:
        torch.addmm(ins["bias"], ins["x"], weight, out=result)
    else:
        torch.mm(ins["x"], weight, out=result)
    pieces.whole(str(params["kind"]), result, result)


def _unknown(problem: Problem, device: Device) -> str | None:
    return pieces.unknown(problem)


def _library(problem: Problem, device: Device) -> str:
    return "a library's matrix product changes a row's bits with the number of rows"


_OWN = {"weight": "rows", "bias": "rows"}
TACTICS = (
    FunctionTactic("linear_activation", "torch_mm", _rows, _OWN, _refuses, _library),
    FunctionTactic("linear_activation", "torch_mm_cols", _cols, _OWN | {"weight": "cols"}, _refuses, _library),
    FunctionTactic("linear_activation", "torch_in_two", _in_two, _OWN, _unknown, _library),
)
