"""The residual sum and its norm in the native core: a row is read once."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.add_norm import NORMS
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.native import NativeTactic


def _refuses(problem: Problem) -> str | None:
    norm = problem.params.get("norm")
    if norm not in NORMS:
        return f"there is no norm {norm!r}, only {' and '.join(NORMS)}"
    return "an RMS norm has no bias" if norm == "rms" and "bias" in problem.present else None


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return NORMS.index(str(params["norm"])), float(params["eps"])


TACTICS = (NativeTactic("add_norm", "native", "add_norm", _numbers, {"weight": "rows", "bias": "rows"}, _refuses),)
