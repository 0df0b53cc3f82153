"""Rows of a table in 16 bits in the native core, out of the layout that the head reads."""

from __future__ import annotations

from allotrope.ops.linear_stored import STORES
from allotrope.ops.native import NativeTactic, only

TACTICS = tuple(
    NativeTactic(
        "embed_stored",
        f"native_{store}",
        f"embed_{store}",
        weights={"table": "panels"},
        refuses=only("store", store, "it widens {}, and this table is stored in {}"),
    )
    for store in STORES
)
