"""RMSNorm's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """As the formula stands; 16-bit inputs are normalised in fp32 and rounded once."""
    dtype = ins["x"].dtype
    parts = torch.unflatten(ins["x"], -1, (int(params["heads"]), -1))
    parts = parts.float() if dtype.itemsize == 2 else parts
    out = parts * (parts.square().mean(-1, keepdim=True) + float(params["eps"])).rsqrt()
    if "weight" in ins:
        out = out * ins["weight"]
    return {"out": out.flatten(-2).to(dtype)}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Rows of different size, so that epsilon matters in some and not in others."""
    random, axes = inputs.generator(seed), problem.axes
    ins = {"x": inputs.activations(random, axes["rows"], axes["width"])}
    if "weight" in problem.present:
        ins["weight"] = inputs.gains(random, axes["width"] // int(problem.params.get("heads", 1)))
    return ins
