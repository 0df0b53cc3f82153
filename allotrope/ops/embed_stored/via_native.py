"""Rows of a table in 16 bits in the native core: from a table of its own, or out of the layout that a tied head reads."""

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


# One class for each store: bits are widened, wherever they lie.
TACTICS = tuple(
    NativeTactic(
        "embed_stored",
        f"native_{place}{store}",
        f"embed_{place}{store}",
        weights={"table": layout},
        refuses=_other(store),
        classed=f"native_{store}",
    )
    for store in STORES
    for place, layout in (("", "rows"), ("panels_", "panels"))
)
