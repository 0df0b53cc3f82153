"""RMSNorm in the native core."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.native import NativeTactic


def _indivisible(problem: Problem) -> str | None:
    heads, width = int(problem.params.get("heads", 1)), problem.axes["width"]
    return f"{heads} heads do not divide a row of {width}" if width % heads else None


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return float(params["eps"]), float(params["heads"])


TACTICS = (NativeTactic("rmsnorm", "native", "rmsnorm", _numbers, {"weight": "rows"}, _indivisible),)
