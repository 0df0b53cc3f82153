"""Linear layers added to the residual in the native core."""

from __future__ import annotations

from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("linear_add", "native", "linear_add", weights=PANELS, sizes=sizes),)
