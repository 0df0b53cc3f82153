"""Linear layers in the native core: rows times panels of sixteen outputs; see `native/core/product.h`."""

from __future__ import annotations

from allotrope.ops.linear.native import PANELS, sizes
from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("linear", "native", "linear", weights=PANELS, sizes=sizes),)
