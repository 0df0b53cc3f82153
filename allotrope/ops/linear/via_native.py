"""Linear layers in the native core."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("linear", "native", "linear", weights={"weight": "rows", "bias": "rows"}),)
