"""LayerNorm in the native core."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Scalar
from allotrope.ops.native import NativeTactic


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return (float(params["eps"]),)


TACTICS = (NativeTactic("layernorm", "native", "layernorm", _numbers, {"weight": "rows", "bias": "rows"}),)
