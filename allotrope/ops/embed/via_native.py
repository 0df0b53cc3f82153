"""Embedding in the native core, from a table of its own or one that a tied head reads as well."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic

# One class: bits are copied.
TACTICS = (
    NativeTactic("embed", "native", "embed", weights={"table": "rows"}),
    NativeTactic("embed", "native_panels", "embed_panels", weights={"table": "panels"}, classed="native"),
)
