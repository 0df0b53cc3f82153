"""Learned positions in the native core."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Scalar
from allotrope.ops.native import NativeTactic


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return (float(params["offset"]),)


TACTICS = (NativeTactic("add_positions", "native", "add_positions", _numbers, {"table": "rows"}),)
