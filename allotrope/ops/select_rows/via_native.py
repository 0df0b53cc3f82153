"""Selecting rows in the native core."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("select_rows", "native", "select_rows"),)
