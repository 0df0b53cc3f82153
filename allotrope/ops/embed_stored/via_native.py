"""Rows of a table in 16 bits in the native core, out of the layout that the head reads."""

from __future__ import annotations

from collections.abc import Callable

from allotrope.ops.contract import Problem
from allotrope.ops.linear_stored import STORES
from allotrope.ops.native import NativeTactic


def _other(store: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        given = problem.params["store"]
        return None if given == store else f"it widens {store}, and this table is stored in {given}"

    return refuses


TACTICS = tuple(
    NativeTactic(
        "embed_stored", f"native_{store}", f"embed_{store}", weights={"table": "panels"}, refuses=_other(store)
    )
    for store in STORES
)
