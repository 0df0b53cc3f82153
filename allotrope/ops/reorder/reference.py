"""The reference and the inputs of putting columns in another order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """Plain indexing."""
    return {"out": ins["x"][:, ins["order"].long()]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Any order."""
    random, axes = inputs.generator(seed), problem.axes
    order = torch.randperm(axes["width"], generator=random).to(torch.int32)
    return {"x": inputs.activations(random, axes["rows"], axes["width"]), "order": order}
