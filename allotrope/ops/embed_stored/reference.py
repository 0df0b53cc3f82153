"""Plain indexing, widened; inputs as the embedding's, the table as it is stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.embed import reference as embed

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """In fp32, or in fp64 where the table is; either holds it exactly."""
    chosen = ins["table"][ins["ids"]]
    return {"out": chosen if chosen.dtype == torch.float64 else chosen.float()}


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """The embedding's, rounded."""
    ins = embed.make_inputs(problem, seed)
    return {**ins, "table": ins["table"].to(_DTYPES[str(problem.params["store"])])}
