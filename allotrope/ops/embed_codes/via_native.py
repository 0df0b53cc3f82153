"""Rows of codes in the native core, out of the layout that the head reads."""

from __future__ import annotations

from allotrope.ops.native import NativeTactic, only

_FORMATS = ("int8", "int4", "fp8")


TACTICS = tuple(
    NativeTactic(
        "embed_codes",
        f"native_{form}",
        f"embed_{form}",
        weights={"codes": "quads", "scales": "panels", "zeros": "panels"},
        refuses=only("format", form, "it reads {}, and this table is {}"),
    )
    for form in _FORMATS
)
