"""Rows of a table in 16 bits in the native core: from a table of its own, or out of the layout of a tied head."""

from __future__ import annotations

from allotrope.ops.linear_stored import STORES
from allotrope.ops.native import NativeTactic, only

# One class for each store: bits are widened, wherever they lie.
TACTICS = tuple(
    NativeTactic(
        "embed_stored",
        f"native_{place}{store}",
        f"embed_{place}{store}",
        weights={"table": layout},
        refuses=only("store", store, "it widens {}, and this table is stored in {}"),
        classed=f"native_{store}",
    )
    for store in STORES
    for place, layout in (("", "rows"), ("panels_", "panels"))
)
