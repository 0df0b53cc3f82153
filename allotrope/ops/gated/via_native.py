"""The gated activation in the native core."""

from __future__ import annotations

from allotrope.ops.activation.native import number, unknown
from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("gated", "native", "gated", number, refuses=unknown),)
