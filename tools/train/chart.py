"""A loss curve as SVG: two lines over the steps, with axes that can be read. Text and shapes only, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 136, 48, 56
INK, FAINT = "#333333", "#dddddd"
SERIES = (("training", "#8a9bb0"), ("held-out", "#c2410c"))  # told apart in grey, too: the second is darker and on top
APART = 16  # pixels between two labels

Point = tuple[float, float]


def loss_curve(title: str, points: Sequence[Sequence[float]], unit: str = "loss (nats per token)") -> str:
    """The picture; `points` are [step, training loss, held-out loss]."""
    if len(points) < 2:
        raise SystemExit(f"{title}: a curve needs two points, training.json has {len(points)}")
    steps = [point[0] for point in points]
    losses = [value for point in points for value in point[1:]]
    across = _Axis(0, max(steps), LEFT, WIDTH - RIGHT)
    up = _Axis(*_span(losses), HEIGHT - BOTTOM, TOP)
    parts = [*_frame(title, unit), *_grid(across, up), *_labels(points[-1], up)]
    for number, (name, colour) in enumerate(SERIES, 1):
        line = " ".join(f"{across.at(point[0]):.1f},{up.at(point[number]):.1f}" for point in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"><title>{name}</title>')
        parts.append("</polyline>")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = f'role="img" aria-label="{escape(title)}" font-family="sans-serif" font-size="13" fill="{INK}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *parts, "</svg>", ""])


class _Axis:
    """Values to pixels."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.high, self._first, self._last = low, high, first, last

    def at(self, value: float) -> float:
        """The pixel of a value; beyond the axis it stays at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self._first + share * (self._last - self._first)

    def ticks(self, about: int) -> list[float]:
        """Round numbers within the axis."""
        step = round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(rough: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, the least that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _span(losses: Sequence[float]) -> tuple[float, float]:
    """From a little below the least to the greatest; a first point far above all others would flatten them."""
    ordered = sorted(losses)
    low, high = ordered[0], ordered[-1]
    upper = ordered[int(0.97 * (len(ordered) - 1))]
    high = min(high, low + 1.6 * (upper - low)) if upper > low else high
    room = (high - low) * 0.06 or 0.1
    return low - room, high + room


def _frame(title: str, unit: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">step</text>',
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>',
    ]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts, right, bottom = list[str](), WIDTH - RIGHT, HEIGHT - BOTTOM
    values = up.ticks(6)
    digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9)) + (1 if _quarters(values) else 0)
    for value in values:
        y = up.at(value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{value:.{digits}f}</text>')
    for value in across.ticks(6):
        x = across.at(value)
        parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="{INK}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{INK}"/>')
    return parts


def _quarters(values: Sequence[float]) -> bool:
    """Whether the ticks are 2.5 times a power of ten apart, which takes a digit more to write."""
    step = values[1] - values[0]
    return abs(step / 10.0 ** math.floor(math.log10(step) + 1e-9) - 2.5) < 0.1


def _labels(last: Sequence[float], up: _Axis) -> list[str]:
    """Each line's name and last value at its end, moved apart where they would lie on each other."""
    places = [up.at(value) for value in last[1:]]
    if abs(places[0] - places[1]) < APART:
        middle, sign = sum(places) / 2, 1 if places[0] >= places[1] else -1
        places = [middle + sign * APART / 2, middle - sign * APART / 2]
    return [
        f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4.5:.1f}" fill="{colour}" font-weight="bold">{name} {value:.3f}</text>'
        for (name, colour), value, y in zip(SERIES, last[1:], places, strict=True)
    ]
