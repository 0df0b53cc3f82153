"""The reference is that of its parts, in their order; so are the inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.layernorm import reference as layernorm
from allotrope.ops.rmsnorm import reference as rmsnorm


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """The sum, rounded to the inputs' dtype, then the norm."""
    total = ins["residual"] + ins["x"]
    given = {"x": total} | {name: ins[name] for name in ("weight", "bias") if name in ins}
    norm = layernorm if params["norm"] == "layer" else rmsnorm
    return {"out": total, "normed": norm.reference(given, {"eps": params["eps"], "heads": 1})["out"]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A layer norm's, and a residual stream of other sizes."""
    residual = inputs.activations(inputs.generator(seed + 1), problem.axes["rows"], problem.axes["width"])
    return layernorm.make_inputs(problem, seed) | {"residual": residual}
