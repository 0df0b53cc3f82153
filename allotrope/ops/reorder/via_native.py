"""Putting columns in another order in the native core."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("reorder", "native", "reorder"),)
