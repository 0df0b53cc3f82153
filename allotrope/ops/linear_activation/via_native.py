"""Linear layers with an activation in the native core."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.activation import FLOPS
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.native import NativeTactic


def _unknown(problem: Problem) -> str | None:
    kind = problem.params.get("kind")
    return None if kind in FLOPS else f"there is no activation {kind!r}, only {', '.join(FLOPS)}"


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return (tuple(FLOPS).index(str(params["kind"])),)


TACTICS = (
    NativeTactic(
        "linear_activation", "native", "linear_activation", _numbers, weights=PANELS, refuses=_unknown, sizes=sizes
    ),
)
