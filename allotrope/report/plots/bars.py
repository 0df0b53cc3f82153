"""Horizontal bars in groups, a limit drawn in where one is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allotrope.report.plots.scale import linear
from allotrope.report.svg import Drawing, fitted, text_width

_BAR, _GAP, _GROUP_GAP, _HEAD = 18, 6, 22, 20
_PHONE = 500  # narrower than that names need more of the width


@dataclass(frozen=True)
class Bar:
    """One bar. `kind` is a class of the style sheet; without a value `reason` stands in its place."""

    name: str
    value: float | None
    tip: str
    kind: str = "other"
    reason: str = ""
    inner: float | None = None  # a part of the value, drawn darker


@dataclass(frozen=True)
class Group:
    """Bars that are compared with each other, and the most that the machine allows."""

    name: str
    bars: Sequence[Bar]
    limit: float | None = None
    limit_tip: str = ""


def draw(width: int, groups: Sequence[Group], said: Callable[[float], str]) -> Drawing:
    """The groups below each other; each has a scale of its own, for it is within a group that bars are compared."""
    names = [bar.name for group in groups for bar in group.bars]
    left = min(max([text_width(name) for name in names], default=0) + 12, width * (0.45 if width < _PHONE else 0.34))
    height = sum(_height(group) for group in groups) + _GROUP_GAP * (len(groups) - 1) + 4
    drawing = Drawing(width, height)
    top = 0.0
    for group in groups:
        _group(drawing, group, top, left, said)
        top += _height(group) + _GROUP_GAP
    return drawing


def _height(group: Group) -> float:
    return (_HEAD if group.name else 0) + len(group.bars) * (_BAR + _GAP) + (16 if group.limit else 0)


def _group(drawing: Drawing, group: Group, top: float, left: float, said: Callable[[float], str]) -> None:
    if group.name:
        drawing.label(0, top + 12, group.name, "label strong")
        top += _HEAD
    known = [bar.value for bar in group.bars if bar.value is not None]
    room = max([text_width(said(value)) for value in known], default=0) + 12
    scale = linear([*known, group.limit or 0.0], left, max(drawing.width - room, left + 40), room=0)
    bottom = top + len(group.bars) * (_BAR + _GAP)
    for i, bar in enumerate(group.bars):
        y = top + i * (_BAR + _GAP)
        drawing.label(left - 8, y + 13, fitted(bar.name, left - 8), "label", "end")
        if bar.value is None:
            drawing.label(
                left + 6, y + 13, fitted(bar.reason or "not measured", drawing.width - left - 6), "label quiet"
            )
            continue
        zero, end = scale(0), scale(bar.value)
        drawing.rect(min(zero, end), y, abs(end - zero), _BAR, f"bar {bar.kind}", bar.tip)
        if bar.inner:
            drawing.rect(zero, y, scale(min(bar.inner, bar.value)) - zero, _BAR, "bar ours")
        drawing.label(max(zero, end) + 6, y + 13, said(bar.value), "label number")
    drawing.line(left, top - 2, left, bottom, "axis")
    if group.limit:
        x = scale(group.limit)
        drawing.line(x, top - 2, x, bottom, "limit")
        words = group.limit_tip
        fits = x - text_width(words) / 2 > 0 and x + text_width(words) / 2 < drawing.width
        drawing.label(x if fits else drawing.width, bottom + 12, words, "label limited", "middle" if fits else "end")
