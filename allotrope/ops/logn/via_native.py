"""Log-n in the native core: one factor per row, computed in fp64 and applied in fp32."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Scalar
from allotrope.ops.native import NativeTactic


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return (float(params["length"]),)


TACTICS = (NativeTactic("logn", "native", "logn", _numbers),)
