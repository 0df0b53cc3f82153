"""The write in the native core."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.kv_rows import COMPUTE, FORMS, misfit
from allotrope.ops.native import NativeTactic


def _refuses(problem: Problem) -> str | None:
    form, heads = str(problem.params.get("kv", COMPUTE)), int(problem.params.get("kv_heads", 1))
    width = problem.axes["kv_width"]
    if width % heads:
        return f"{width} channels cannot be {heads} heads"
    return misfit(form, heads, width // heads, problem.axes["cache_width"])


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    return FORMS.index(str(params["kv"])), float(params["kv_heads"])


TACTICS = (NativeTactic("kv_write", "native", "kv_write", _numbers, refuses=_refuses),)
