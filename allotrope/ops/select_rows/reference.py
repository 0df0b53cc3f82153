"""The reference and the inputs of selecting rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """Plain indexing."""
    return {"out": ins["x"][ins["index"]]}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Rows that nobody selects are poison."""
    random, axes = inputs.generator(seed), problem.axes
    x = inputs.activations(random, axes["tokens"], axes["width"])
    index = inputs.indices(random, axes["rows"], axes["tokens"])
    unread = torch.ones(axes["tokens"], dtype=torch.bool)
    unread[index] = False
    x[unread] = torch.nan
    return {"x": x, "index": index}
