"""The plain factor, and the inputs: positions below, at and beyond the training length."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """x times the factor, rounded to x's dtype first."""
    length, count = int(params["length"]), ins["positions"] + 1
    factor = torch.where(count > length, count.double().log() / math.log(length), 1.0)
    return {"out": ins["x"] * factor.to(ins["x"].dtype)[:, None]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Positions up to four times the length, the last one that does not grow among them."""
    random, axes, length = inputs.generator(seed), problem.axes, int(problem.params["length"])
    positions = inputs.indices(random, axes["rows"], 4 * length)
    positions[2:5] = torch.tensor([length - 2, length - 1, length])[: max(0, axes["rows"] - 2)]
    return {"x": inputs.activations(random, axes["rows"], axes["width"]), "positions": positions}
