"""The rotation in the native core: a step's cosines and sines are computed once for all layers."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.native import NativeTactic, Prelude
from allotrope.ops.rotary import SCALINGS, misfit

_NUMBERS = ("heads", "head_dim", "dim", "base", "scaling", "factor", "low_freq", "high_freq", "original_len")


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return tuple(SCALINGS.index(str(params[n])) if n == "scaling" else float(params[n]) for n in _NUMBERS)


def _key(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return _numbers(params)[1:]


def _room(rows: int, params: Mapping[str, Scalar]) -> int:
    return 4 * rows * int(params["dim"])


def _refuses(problem: Problem) -> str | None:
    return misfit(problem)


TACTICS = (
    NativeTactic(
        "rotary", "native", "rotary", _numbers, refuses=_refuses, prelude=Prelude("rotary_turns", _room, _key)
    ),
)
