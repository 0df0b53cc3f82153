"""The decoded weight, then the linear layer; inputs as rounding to nearest would give them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.codes import decoded
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear import reference as linear
from allotrope.ops.linear_codes import PER_BYTE


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """In the precision of `x`, the decoded weight rounded to it once."""
    weight = decoded(ins["codes"], ins["scales"], ins.get("zeros"), str(params["format"]), ins["x"].dtype)
    return linear.reference({**ins, "weight": weight}, {})


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A linear layer's; codes of every value, and scales that keep the activations' size. Some rows are all zero."""
    random, axes = inputs.generator(seed), problem.axes
    out, groups, form = axes["out"], axes["groups"], str(problem.params["format"])
    if axes["packed"] * PER_BYTE[form] != axes["in"]:
        raise ValueError(f"{axes['packed']} bytes a row cannot hold {axes['in']} codes of {form}")
    codes = torch.randint(0, 256, (out, axes["packed"]), generator=random, dtype=torch.uint8)
    if form == "fp8":
        codes[(codes & 0x7F) == 0x7F] = 0  # of e4m3's values only these are NaN
    largest = {"int8": 128.0, "int4": 8.0, "fp8": 448.0}[form]
    sizes = 0.5 + torch.rand(out, groups, generator=random, dtype=torch.float64)
    scales = (sizes * axes["in"] ** -0.5 / largest).to(torch.float32 if groups == 1 else torch.float16)
    scales[1::7] = 0
    ins: dict[str, Tensor] = {
        "x": inputs.activations(random, axes["rows"], axes["in"]),
        "codes": codes,
        "scales": scales,
    }
    if "zeros" in problem.present:
        ins["zeros"] = torch.randint(0, 16, (out, groups), generator=random, dtype=torch.uint8)
    if "bias" in problem.present:
        ins["bias"] = inputs.normal(random, out, scale=0.3)
    return ins
