"""Drawing in SVG: a few marks in classes of the style sheet, each with its words for a pointer or a screen reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from allotrope.report.escape import markup

_GLYPH = 7.3  # average advance of 12 px text, for placing and cutting labels


def text_width(text: str) -> float:
    """About how wide `text` is drawn."""
    return len(text) * _GLYPH


def fitted(text: str, width: float) -> str:
    """`text`, cut in the middle where it is wider than `width`."""
    room = max(int(width / _GLYPH), 3)
    if len(text) <= room:
        return text
    half = (room - 1) // 2
    return f"{text[: room - 1 - half]}…{text[len(text) - half :]}"


def _figure(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


@dataclass
class Drawing:
    """A picture being drawn. Marks with `tip` are what a reader may step through."""

    width: int
    height: float
    _parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        ends = f'x1="{_figure(x1)}" y1="{_figure(y1)}" x2="{_figure(x2)}" y2="{_figure(y2)}"'
        self._parts.append(f'<line class="{kind}" {ends}/>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        through = " ".join(f"{_figure(x)},{_figure(y)}" for x, y in points)
        self._parts.append(f'<polyline class="{kind}" points="{through}"/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """A rectangle, at least half a pixel wide."""
        place = f'x="{_figure(x)}" y="{_figure(y)}" width="{_figure(max(width, 0.5))}" height="{_figure(height)}"'
        self._mark("rect", f'class="{kind}" {place}', tip)

    def dot(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        """A circle."""
        self._mark("circle", f'class="{kind}" cx="{_figure(x)}" cy="{_figure(y)}" r="{_figure(radius)}"', tip)

    def label(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> None:
        """Text."""
        place = f'class="{kind}" x="{_figure(x)}" y="{_figure(y)}" text-anchor="{anchor}"'
        self._parts.append(f"<text {place}>{markup(text)}</text>")

    def _mark(self, element: str, attributes: str, tip: str) -> None:
        if tip:
            self._parts.append(f'<{element} {attributes} data-tip=""><title>{markup(tip)}</title></{element}>')
        else:
            self._parts.append(f"<{element} {attributes}/>")

    def inline(self, kind: str) -> str:
        """The picture inside a page, whose style sheet colours it; the words beside it describe it."""
        size = f'viewBox="0 0 {self.width} {_figure(self.height)}" width="{self.width}"'
        return f'<svg class="{kind}" {size} aria-hidden="true" focusable="false">{"".join(self._parts)}</svg>'

    def alone(self, style: str) -> str:
        """The picture as a file of its own, with its style."""
        size = f'viewBox="0 0 {self.width} {_figure(self.height)}" width="{self.width}" height="{_figure(self.height)}"'
        drawn = "".join(self._parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{drawn}</svg>'
