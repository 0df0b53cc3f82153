"""Cosines and sines of a step, computed once for all layers, and ways to turn by them in few kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.pairs import memo_of
from allotrope.ops.rotary.reference import exponents, fixed_frequencies, growth

MATRIX_BYTES = 16 << 20  # of all rows' matrices: beyond, reading them costs more than kernels do


def frequencies(ins: Mapping[str, Any], params: Mapping[str, Scalar]) -> Tensor:
    """[dim / 2], or [rows, dim / 2] where they follow the length; fp32."""
    positions, dim = ins["positions"], int(params["dim"])
    if params["scaling"] not in ("dynamic", "qwen_ntk"):
        return fixed_frequencies(params, torch.float32, positions.device)
    # exp and log in fp64, not pow: on the CPU pow's last bit depends on where an element lies in the tensor
    log_growth = growth(positions, ins["prompt_lens"], params).log_()
    log_base = math.log(float(params["base"])) + log_growth * (dim / (dim - 2))
    return (-log_base[:, None] * exponents(dim, torch.float64, positions.device)).exp_().float()


def angles(ins: Mapping[str, Any], params: Mapping[str, Scalar]) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [rows, dim / 2] each; fp32."""
    turned = ins["positions"].float()[:, None] * frequencies(ins, params)
    return turned.cos(), turned.sin()


def _key(name: str, params: Mapping[str, Scalar]) -> tuple[Any, ...]:
    return (name, *(value for key, value in sorted(params.items()) if key != "heads"))


def by_tables(
    out: Mapping[str, Tensor], ins: Mapping[str, Any], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    """x · cos + x with its halves exchanged · (−sin, sin), in fp32, rounded once: three kernels."""
    memo, key = memo_of(ins), _key("tables", params)
    if key not in memo:
        cos, sin = angles(ins, params)
        memo[key] = torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
    cos, sin = memo[key]
    head_dim, dim = int(params["head_dim"]), int(params["dim"])
    x, result = (tensor.view(len(tensor), -1, head_dim) for tensor in (ins["x"], out["out"]))
    turned = x[..., :dim]
    exchanged = turned.unflatten(-1, (2, dim // 2)).flip(-2).flatten(-2)
    torch.addcmul(turned * cos, exchanged, sin, out=result[..., :dim])
    if dim < head_dim:
        result[..., dim:] = x[..., dim:]


def matrices_refuse(problem: Problem, device: Device) -> str | None:
    """Where matrices are of no use."""
    if int(problem.params["dim"]) != int(problem.params["head_dim"]):
        return "a matrix turns a head's channels all together, and here some are not turned"
    return None


def by_matrices(
    out: Mapping[str, Tensor], ins: Mapping[str, Any], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    """All heads of a row times the row's own rotation matrix: one kernel. Of many rows, tables."""
    if len(ins["x"]) * int(params["dim"]) ** 2 * ins["x"].element_size() > MATRIX_BYTES:
        by_tables(out, ins, params, workspace)
        return
    memo, key = memo_of(ins), _key("matrices", params)
    if key not in memo:
        cos, sin = (torch.diag_embed(part.to(ins["x"].dtype)) for part in angles(ins, params))
        memo[key] = torch.cat([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)], -2)
    head_dim = int(params["head_dim"])
    x, result = (tensor.view(len(tensor), -1, head_dim) for tensor in (ins["x"], out["out"]))
    torch.bmm(x, memo[key], out=result)
