"""The rotation with torch: elementwise, in fp32, rounded once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.rotary import SCALINGS
from allotrope.ops.rotary.reference import exponents, fixed_frequencies, growth


def _refuses(problem: Problem, device: Device) -> str | None:
    params = problem.params
    heads, head_dim, dim = (int(params[name]) for name in ("heads", "head_dim", "dim"))
    scaling = str(params.get("scaling", "none"))
    if scaling not in SCALINGS:
        return f"rotary scaling {scaling!r} is none of {', '.join(SCALINGS)}"
    if heads * head_dim != problem.axes["width"]:
        return f"{heads} heads of {head_dim} channels do not make a row of {problem.axes['width']}"
    if dim % 2 or not 0 < dim <= head_dim:
        return f"{dim} rotated channels are not an even part of a head of {head_dim}"
    if scaling in ("dynamic", "qwen_ntk") and dim == 2:
        return f"{scaling} scaling is undefined for 2 rotated channels"
    if scaling in ("llama3", "dynamic", "qwen_ntk") and int(params.get("original_len", 0)) < 1:
        return f"{scaling} scaling needs the training length, original_len"
    return None


def _frequencies(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> Tensor:
    """[dim / 2], or [rows, dim / 2] where they follow the length; fp32."""
    positions, dim = ins["positions"], int(params["dim"])
    if params["scaling"] not in ("dynamic", "qwen_ntk"):
        return fixed_frequencies(params, torch.float32, positions.device)
    # exp and log in fp64, not pow: on the CPU pow's last bit depends on where an element lies in the tensor
    log_growth = growth(positions, ins["prompt_lens"], params).log_()
    log_base = math.log(float(params["base"])) + log_growth * (dim / (dim - 2))
    return (-log_base[:, None] * exponents(dim, torch.float64, positions.device)).exp_().float()


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    head_dim, dim = int(params["head_dim"]), int(params["dim"])
    x, result = (tensor.view(len(tensor), -1, head_dim) for tensor in (ins["x"], out["out"]))
    angles = ins["positions"].float()[:, None] * _frequencies(ins, params)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., : dim // 2], x[..., dim // 2 : dim]
    result[..., : dim // 2] = first * cos - second * sin
    result[..., dim // 2 : dim] = second * cos + first * sin
    if dim < head_dim:
        result[..., dim:] = x[..., dim:]


TACTICS = (FunctionTactic("rotary", "torch", _run, refuses=_refuses),)
