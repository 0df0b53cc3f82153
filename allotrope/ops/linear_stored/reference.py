"""The stored weight widened, then the linear layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear import reference as linear

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """In the precision of `x`."""
    return linear.reference({**ins, "weight": ins["weight"].to(ins["x"].dtype)}, {})


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """A linear layer's, the weight as it is stored."""
    ins = linear.make_inputs(problem, seed)
    return {**ins, "weight": ins["weight"].to(_DTYPES[str(problem.params["store"])])}
