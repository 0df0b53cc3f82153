"""The sum in the native core."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("add", "native", "add"),)
