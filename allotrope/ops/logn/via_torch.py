"""Log-n with torch: one factor per row, computed in fp64 and applied in fp32."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    length, count = int(params["length"]), ins["positions"] + 1
    factor = torch.where(count > length, count.double().log() / math.log(length), 1.0)
    out["out"].copy_(ins["x"] * factor.float()[:, None])


TACTICS = (FunctionTactic("logn", "torch", _run),)
