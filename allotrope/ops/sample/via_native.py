"""Sampling in the native core: chunks of the vocabulary by all threads, a row's draw by one."""

from __future__ import annotations

from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic, aligned
from allotrope.ops.sample import ADJUSTMENTS

_CHUNK, _RECORD, _BINS = 4096, 32, 2048  # as in via_native.cpp


def _refuses(problem: Problem) -> str | None:
    if problem.present and problem.present != set(ADJUSTMENTS):
        return f"of the adjustments' operands it is given only {', '.join(sorted(problem.present))}"
    return None


def _scratch(problem: Problem, threads: int) -> int:
    vocab = problem.axes["vocab"]
    row = aligned(_RECORD * -(-vocab // _CHUNK)) + aligned(8 * vocab) + aligned(4 * vocab)
    return threads * (row + 16 * _BINS + aligned(4 * vocab))


TACTICS = (NativeTactic("sample", "native", "sample", refuses=_refuses, scratch=_scratch),)
