"""Linear layers with an activation in the native core."""

from __future__ import annotations

from allotrope.ops.activation.native import number, unknown
from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.native import NativeTactic

TACTICS = (
    NativeTactic(
        "linear_activation", "native", "linear_activation", number, weights=PANELS, refuses=unknown, sizes=sizes
    ),
)
