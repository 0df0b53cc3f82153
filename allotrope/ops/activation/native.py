"""What the native tactics that compute an activation have in common: which kinds there are, and a kind's number."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.activation import FLOPS
from allotrope.ops.contract import Problem, Scalar


def unknown(problem: Problem) -> str | None:
    """Why there is no such activation; None if there is."""
    kind = problem.params.get("kind")
    return None if kind in FLOPS else f"there is no activation {kind!r}, only {', '.join(FLOPS)}"


def number(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    """Its kind, as `native/core/finish.h` numbers them."""
    return (tuple(FLOPS).index(str(params["kind"])),)
