"""The sum with torch. One IEEE addition per element: the bits depend on nothing else, on any device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    torch.add(ins["a"], ins["b"], out=out["out"])


TACTICS = (FunctionTactic("add", "torch", _run),)
