"""Sizes and times in the units that people use, for errors and commands alike."""

from __future__ import annotations

import math


def bytes_text(count: float) -> str:
    """`1.25 GB`: decimal units, as disks and bandwidths are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} EB"


def shortage(needed: int, available: int) -> str:
    """`16.4 GB, 3.2 GB are available`; to the byte where that is what is missing."""
    wanted, there = bytes_text(needed), bytes_text(available)
    return f"{wanted}, {there} are available" if wanted != there else f"{needed} bytes, {available} are available"


def time_text(seconds: float) -> str:
    """`1.24 ms`: three figures in the unit that suits."""
    if not math.isfinite(seconds):
        return "–"
    for limit, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds / 60:.1f} min"
