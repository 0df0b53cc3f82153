"""Rows of codes in the native core, out of the layout that the head reads."""

from __future__ import annotations

from collections.abc import Callable

from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic

_FORMATS = ("int8", "int4", "fp8")


def _other(form: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        given = problem.params["format"]
        return None if given == form else f"it reads {form}, and this table is {given}"

    return refuses


TACTICS = tuple(
    NativeTactic(
        "embed_codes",
        f"native_{form}",
        f"embed_{form}",
        weights={"codes": "quads", "scales": "panels", "zeros": "panels"},
        refuses=_other(form),
    )
    for form in _FORMATS
)
