"""Points with intervals along one axis, zero drawn in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allotrope.report.plots.scale import linear
from allotrope.report.svg import Drawing, fitted, text_width

_ROW, _BOTTOM = 30, 26


@dataclass(frozen=True)
class Point:
    """A figure and the interval it lies in."""

    name: str
    value: float
    low: float | None
    high: float | None
    tip: str
    kind: str = "ours"


def draw(width: int, points: Sequence[Point], said: Callable[[float], str]) -> Drawing:
    """One row per point."""
    drawing = Drawing(width, len(points) * _ROW + _BOTTOM)
    left = min(max([text_width(point.name) for point in points], default=0) + 14, width * 0.3)
    ends = [end for point in points for end in (point.value, point.low, point.high) if end is not None]
    ends += [-1.0, 1.0] if not any(ends) else []  # nothing differs: zero lies in the middle
    scale = linear(ends, left + 10, width - 16, room=0.08)
    bottom = drawing.height - _BOTTOM
    for tick in scale.ticks(4 if width < 500 else 7):
        drawing.line(scale(tick), 0, scale(tick), bottom, "grid")
        drawing.label(scale(tick), bottom + 16, said(tick), "label", "middle")
    drawing.line(scale(0), 0, scale(0), bottom, "axis")
    for i, point in enumerate(points):
        y = i * _ROW + _ROW / 2
        drawing.label(left - 4, y + 4, fitted(point.name, left - 4), "label", "end")
        if point.low is not None and point.high is not None:
            drawing.line(scale(point.low), y, scale(point.high), y, "whisker")
            for end in (point.low, point.high):
                drawing.line(scale(end), y - 5, scale(end), y + 5, "whisker")
        drawing.dot(scale(point.value), y, 5, f"dot {point.kind}", point.tip)
    return drawing
