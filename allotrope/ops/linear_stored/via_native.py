"""Linear layers over 16-bit weights in the native core, which widens them in registers."""

from __future__ import annotations

from collections.abc import Callable

from allotrope.ops.contract import Problem
from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.linear_stored import STORES
from allotrope.ops.native import NativeTactic


def _other(store: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        given = problem.params["store"]
        return None if given == store else f"it widens {store}, and this weight is stored in {given}"

    return refuses


TACTICS = tuple(
    NativeTactic(
        "linear_stored", f"native_{store}", f"linear_{store}", weights=PANELS, refuses=_other(store), sizes=sizes
    )
    for store in STORES
)
