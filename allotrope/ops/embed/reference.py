"""The embedding's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """Plain indexing."""
    return {"out": ins["table"][ins["ids"]]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A random table, and ids from its first row to its last."""
    random, axes = inputs.generator(seed), problem.axes
    return {
        "ids": inputs.indices(random, axes["rows"], axes["vocab"]),
        "table": inputs.normal(random, axes["vocab"], axes["width"]),
    }
