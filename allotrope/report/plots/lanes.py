"""A timeline: spans in lanes, the time from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotrope.report.figures import ms
from allotrope.report.plots.scale import linear
from allotrope.report.svg import Drawing, text_width

_LANE, _GAP, _BOTTOM = 26, 18, 26


@dataclass(frozen=True)
class Span:
    """What happened from when to when, in milliseconds."""

    name: str
    start: float
    end: float
    tip: str
    kind: str = "other"


@dataclass(frozen=True)
class Lane:
    """A line of spans that do not overlap."""

    name: str
    spans: Sequence[Span]


def draw(width: int, lanes: Sequence[Lane]) -> Drawing:
    """Lanes below each other, each under its name."""
    drawing = Drawing(width, len(lanes) * (_LANE + _GAP) + _BOTTOM)
    scale = linear([span.end for lane in lanes for span in lane.spans], 2, width - 2, room=0)
    bottom = drawing.height - _BOTTOM
    for tick in scale.ticks(4 if width < 500 else 8):
        drawing.line(scale(tick), 0, scale(tick), bottom, "grid")
        near_end = scale(tick) > width - 24
        anchor = "end" if near_end else "start" if tick == 0 else "middle"
        drawing.label(scale(tick), bottom + 16, ms(tick), "label", anchor)
    for i, lane in enumerate(lanes):
        y = i * (_LANE + _GAP) + _GAP - 2
        drawing.label(2, y - 4, lane.name, "label strong")
        for span in lane.spans:
            x, end = scale(span.start), scale(span.end)
            drawing.rect(x, y, max(end - x, 0.5), _LANE - 4, f"span {span.kind}", span.tip)
            if text_width(span.name) + 8 < end - x:
                drawing.label(x + 4, y + 15, span.name, "label on-ours" if span.kind == "ours" else "label on-bar")
    return drawing
