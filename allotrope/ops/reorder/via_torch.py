"""Putting columns in another order with torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    torch.index_select(ins["x"], 1, ins["order"], out=out["out"])


TACTICS = (FunctionTactic("reorder", "torch", _run),)
