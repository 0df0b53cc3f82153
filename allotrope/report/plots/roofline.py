"""Work per byte against speed, under the roofs that the machine was measured to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotrope.report.figures import flops, number
from allotrope.report.plots.scale import Log, log
from allotrope.report.svg import Drawing, fitted, text_width

_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 18, 40, 44


@dataclass(frozen=True)
class Spot:
    """An op: flops per byte, flops per second, and its share of the time."""

    name: str
    intensity: float
    achieved: float
    share: float
    tip: str


def draw(width: int, spots: Sequence[Spot], read_bytes_per_s: float, peak: float | None) -> Drawing:
    """Dots under a slope (reading) and a level (multiplying)."""
    drawing = Drawing(width, 360)
    across = log([spot.intensity for spot in spots] + ([peak / read_bytes_per_s * 2] if peak else []), 0, 1)
    across = Log(across.low, across.high, _LEFT, width - _RIGHT)
    roofs = [read_bytes_per_s * across.low, peak or read_bytes_per_s * across.high]
    up = log([*roofs, *(spot.achieved for spot in spots)], drawing.height - _BOTTOM, _TOP)
    _axes(drawing, across, up)
    _roof(drawing, across, up, read_bytes_per_s, peak)
    for spot in sorted(spots, key=lambda spot: -spot.share):
        radius = 4 + 9 * min(max(spot.share, 0.0), 1.0) ** 0.5
        drawing.dot(across(spot.intensity), up(spot.achieved), radius, "dot ours see-through", spot.tip)
    for spot in sorted(spots, key=lambda spot: -spot.share)[:3]:
        x, y = across(spot.intensity), up(spot.achieved)
        name = fitted(spot.name, width * 0.3)
        right = x + 16 + text_width(name) < width - _RIGHT
        drawing.label(x + (14 if right else -14), y + 4, name, "label", "start" if right else "end")
    return drawing


def _axes(drawing: Drawing, across: Log, up: Log) -> None:
    bottom = drawing.height - _BOTTOM
    for tick in across.ticks(4 if drawing.width < 500 else 8):
        drawing.line(across(tick), _TOP, across(tick), bottom, "grid")
        drawing.label(across(tick), bottom + 16, number(tick), "label", "middle")
    for tick in up.ticks(5):
        drawing.line(_LEFT, up(tick), drawing.width - _RIGHT, up(tick), "grid")
        drawing.label(_LEFT - 8, up(tick) + 4, flops(tick), "label", "end")
    drawing.label((drawing.width + _LEFT) / 2, bottom + 36, "flops per byte moved", "label quiet", "middle")


def _roof(drawing: Drawing, across: Log, up: Log, read: float, peak: float | None) -> None:
    ridge = min(peak / read, across.high) if peak else across.high
    slope = [(across(x), up(read * x)) for x in (across.low, max(ridge, across.low))]
    drawing.path(slope, "roof")
    if peak and ridge < across.high:
        drawing.path([(across(ridge), up(peak)), (across(across.high), up(peak))], "roof")
    words = [f"slope: reading {number(read / 1e9)} GB/s"] + ([f"level: {flops(peak)}"] if peak else [])
    for i, told in enumerate(words):
        drawing.label(_LEFT, 12 + 15 * i, told, "label limited")
