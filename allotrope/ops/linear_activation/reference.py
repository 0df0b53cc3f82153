"""The reference is that of its parts, in their order; so are the inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops.activation import reference as activation
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear import reference as linear


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """The linear layer, rounded to the inputs' dtype, then the activation."""
    return activation.reference({"x": linear.reference(ins, params)["out"]}, params)


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A linear layer's."""
    return linear.make_inputs(problem, seed)
