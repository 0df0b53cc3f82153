"""The gated activation's reference and inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.activation.reference import KINDS
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """act(gate) · up."""
    return {"out": KINDS[str(params["kind"])](ins["gate"]) * ins["up"]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Two activations of unlike sizes, row by row; fp16 holds their product."""
    random, rows, width = inputs.generator(seed), problem.axes["rows"], problem.axes["width"]
    return {"gate": inputs.activations(random, rows, width), "up": inputs.activations(random, rows, width)}
