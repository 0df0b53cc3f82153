"""LayerNorm's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """As the formula stands; 16-bit inputs are normalised in fp32 and rounded once, as everybody does."""
    dtype = ins["x"].dtype
    x = ins["x"].float() if dtype.itemsize == 2 else ins["x"]
    centred = x - x.mean(-1, keepdim=True)
    out = centred * (centred.square().mean(-1, keepdim=True) + float(params["eps"])).rsqrt()
    if "weight" in ins:
        out = out * ins["weight"]
    if "bias" in ins:
        out = out + ins["bias"]
    return {"out": out.to(dtype)}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Rows of different size, so that epsilon matters in some and not in others."""
    random, axes = inputs.generator(seed), problem.axes
    ins = {"x": inputs.activations(random, axes["rows"], axes["width"])}
    if "weight" in problem.present:
        ins["weight"] = inputs.gains(random, axes["width"])
    if "bias" in problem.present:
        ins["bias"] = inputs.normal(random, axes["width"], scale=0.3)
    return ins
