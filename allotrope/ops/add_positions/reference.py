"""The reference and the inputs of learned positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """x + table[positions + offset]."""
    return {"out": ins["x"] + ins["table"][ins["positions"] + int(params["offset"])]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Positions from the first to the last that the table has."""
    random, axes = inputs.generator(seed), problem.axes
    return {
        "x": inputs.activations(random, axes["rows"], axes["width"]),
        "table": inputs.normal(random, axes["size"], axes["width"]),
        "positions": inputs.indices(random, axes["rows"], axes["size"] - int(problem.params.get("offset", 0))),
    }
