"""Linear layers over 16-bit weights in the native core, which widens them in registers."""

from __future__ import annotations

from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.linear_stored import STORES
from allotrope.ops.native import NativeTactic, only

TACTICS = tuple(
    NativeTactic(
        "linear_stored",
        f"native_{store}",
        f"linear_{store}",
        weights=PANELS,
        refuses=only("store", store, "it widens {}, and this weight is stored in {}"),
        sizes=sizes,
    )
    for store in STORES
)
