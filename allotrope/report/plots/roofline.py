"""Work per byte against speed, under the roofs that the machine was measured to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotrope.report.figures import flops, number
from allotrope.report.plots.scale import Log, log
from allotrope.report.svg import Drawing, fitted, text_width

_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 18, 54, 44
_NAMED, _HALF = 6, 7  # dots with a name; half the height of a name, and of most dots
Box = tuple[float, float, float, float]
"""Middle, and half its width and height."""


@dataclass(frozen=True)
class Spot:
    """An op: flops per byte, flops per second, and its share of the time."""

    name: str
    intensity: float
    achieved: float
    share: float
    tip: str


@dataclass(frozen=True)
class Roofs:
    """What the machine was measured to do: bytes per second by what they are read from, and flops per second."""

    slopes: Sequence[tuple[str, float]]
    level: float | None


def draw(width: int, spots: Sequence[Spot], roofs: Roofs) -> Drawing:
    """Dots under slopes (reading) and a level (multiplying)."""
    drawing = Drawing(width, 374)
    slowest, fastest = (pick(rate for _, rate in roofs.slopes) for pick in (min, max))
    ridge = [roofs.level / slowest * 2] if roofs.level else []
    across = log([*(spot.intensity for spot in spots), *ridge], _LEFT, width - _RIGHT)
    tops = [slowest * across.low, roofs.level or fastest * across.high]
    up = log([*tops, *(spot.achieved for spot in spots)], drawing.height - _BOTTOM, _TOP)
    _axes(drawing, across, up)
    _roofs(drawing, across, up, roofs)
    largest = sorted(spots, key=lambda spot: -spot.share)
    for spot in largest:
        radius = 4 + 9 * min(max(spot.share, 0.0), 1.0) ** 0.5
        drawing.dot(across(spot.intensity), up(spot.achieved), radius, "dot ours see-through", spot.tip)
    taken: list[Box] = [(across(spot.intensity), up(spot.achieved), _HALF, _HALF) for spot in spots]
    for spot in largest[:_NAMED]:
        x, y = across(spot.intensity), up(spot.achieved)
        _name(drawing, x, y, fitted(spot.name, width * 0.4), taken)
    return drawing


def _name(drawing: Drawing, x: float, y: float, name: str, taken: list[Box]) -> None:
    """A dot's name where it covers no other name and no other dot, and stays inside; else nowhere."""
    half = text_width(name) / 2
    beside, below = (
        ((14 + half, 0), (-14 - half, 0)),
        [(dx, dy) for dy in (20, -18, 36, -34) for dx in (0, half, -half)],
    )
    for dx, dy in (*beside, *below):
        box = (x + dx, y + dy, half, _HALF)
        inside = box[0] - half > _LEFT and box[0] + half < drawing.width - _RIGHT
        inside = inside and _TOP - 10 < box[1] < drawing.height - _BOTTOM - 4
        others = [one for one in taken if one[:2] != (x, y)]
        if inside and not any(_cover(box, other) for other in others):
            drawing.label(box[0], box[1] + 4, name, "label named", "middle")
            taken.append(box)
            return


def _cover(one: Box, other: Box) -> bool:
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < one[3] + other[3]


def _axes(drawing: Drawing, across: Log, up: Log) -> None:
    bottom = drawing.height - _BOTTOM
    for tick in across.ticks(4 if drawing.width < 500 else 8):
        drawing.line(across(tick), _TOP, across(tick), bottom, "grid")
        drawing.label(across(tick), bottom + 16, number(tick), "label", "middle")
    for tick in up.ticks(5):
        drawing.line(_LEFT, up(tick), drawing.width - _RIGHT, up(tick), "grid")
        drawing.label(_LEFT - 8, up(tick) + 4, flops(tick), "label", "end")
    drawing.label((drawing.width + _LEFT) / 2, bottom + 36, "flops per byte moved", "label quiet", "middle")


def _roofs(drawing: Drawing, across: Log, up: Log, roofs: Roofs) -> None:
    """Each slope up to the level, the level from the first ridge on, and what they are above the picture."""
    words = []
    for place, (name, rate) in enumerate(roofs.slopes):
        ridge = min(roofs.level / rate, across.high) if roofs.level else across.high
        if ridge > across.low:
            path = [(across(x), up(rate * x)) for x in (across.low, ridge)]
            drawing.path(path, "roof" if place == 0 else "roof dashed")
        words.append(f"{'solid' if place == 0 else 'dashed'}: {name}, {number(rate / 1e9)} GB/s")
    if roofs.level:
        first = max(min(roofs.level / max(rate for _, rate in roofs.slopes), across.high), across.low)
        drawing.path([(across(first), up(roofs.level)), (across(across.high), up(roofs.level))], "roof")
        words.append(f"level: multiplying, {flops(roofs.level)}")
    for place, told in enumerate(words):
        drawing.label(drawing.width - _RIGHT, 12 + 15 * place, told, "label limited", "end")
