"""Steps from one figure to another: what each part adds or takes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allotrope.report.plots.scale import linear
from allotrope.report.svg import Drawing, fitted, text_width

_BAR, _ROW = 18, 28


@dataclass(frozen=True)
class Step:
    """From one value to another; a total begins at zero."""

    name: str
    start: float
    end: float
    total: bool
    tip: str
    words: str
    kind: str = "other"


def draw(width: int, steps: Sequence[Step], said: Callable[[float], str]) -> Drawing:
    """One row per step, joined by thin lines."""
    drawing = Drawing(width, len(steps) * _ROW + 24)
    left = min(max([text_width(step.name) for step in steps], default=0) + 14, width * 0.36)
    room = max([text_width(step.words) for step in steps], default=0) + 14
    scale = linear(
        [end for step in steps for end in (step.start, step.end)], left, max(width - room, left + 60), room=0
    )
    bottom = len(steps) * _ROW
    for tick in scale.ticks(3 if width < 500 else 6):
        drawing.line(scale(tick), 0, scale(tick), bottom, "grid")
        drawing.label(scale(tick), bottom + 16, said(tick), "label", "middle")
    for i, step in enumerate(steps):
        y = i * _ROW + (_ROW - _BAR) / 2
        first, last = sorted((scale(step.start), scale(step.end)))
        drawing.label(left - 8, y + 13, fitted(step.name, left - 8), "label", "end")
        drawing.rect(first, y, max(last - first, 1.5), _BAR, f"bar {step.kind}", step.tip)
        drawing.label(last + 6, y + 13, step.words, "label number")
        if i + 1 < len(steps) and not steps[i + 1].total:
            x = scale(step.end)
            drawing.line(x, y + _BAR, x, y + _ROW, "join")
    drawing.line(left, 0, left, bottom, "axis")
    return drawing
