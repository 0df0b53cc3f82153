"""Embedding in the native core."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("embed", "native", "embed", weights={"table": "rows"}),)
