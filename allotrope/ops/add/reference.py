"""The sum's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """a + b."""
    return {"out": ins["a"] + ins["b"]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Two activations of unlike sizes, row by row."""
    random, rows, width = inputs.generator(seed), problem.axes["rows"], problem.axes["width"]
    return {"a": inputs.activations(random, rows, width), "b": inputs.activations(random, rows, width)}
