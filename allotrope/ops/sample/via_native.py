"""Sampling in the native core: chunks of the vocabulary by all threads, a row's draw by one."""

from __future__ import annotations

from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic
from allotrope.ops.sample import ADJUSTMENTS


def _refuses(problem: Problem) -> str | None:
    if problem.present and problem.present != set(ADJUSTMENTS):
        return f"of the adjustments' operands it is given only {', '.join(sorted(problem.present))}"
    return None


def _sizes(problem: Problem) -> tuple[int, ...]:
    return (problem.axes["vocab"],)


TACTICS = (NativeTactic("sample", "native", "sample", refuses=_refuses, sizes=_sizes),)
