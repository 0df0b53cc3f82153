"""Errors block by block, on a logarithmic axis, beside the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotrope.report.figures import number
from allotrope.report.plots.scale import Log, log
from allotrope.report.svg import Drawing, text_width

_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 30, 46


@dataclass(frozen=True)
class Block:
    """One block: the error that it adds, and what the precision alone explains. Zero is exact."""

    name: str
    injected: float
    floor: float
    well: bool
    tip: str


def draw(width: int, blocks: Sequence[Block]) -> Drawing:
    """A dot per block over a bar for its floor; what is exact lies on the axis."""
    drawing = Drawing(width, 300)
    bottom = drawing.height - _BOTTOM
    scale = log([value for block in blocks for value in (block.injected, block.floor)], bottom - 14, _TOP)
    _axis(drawing, scale, bottom)
    step = (width - _LEFT - _RIGHT) / max(len(blocks), 1)
    for i, block in enumerate(blocks):
        x = _LEFT + (i + 0.5) * step
        if block.floor > 0:
            half, y = min(step * 0.42, 16), scale(block.floor)
            drawing.rect(x - half, y, 2 * half, bottom - y, "floor")
            drawing.line(x - half, y, x + half, y, "floor-edge")
        y = scale(block.injected) if block.injected > 0 else bottom
        radius = max(2.5, min(5, step * 0.3))
        kind = "dot ours" if block.well else "dot wrong"
        drawing.dot(x, y, radius, kind, block.tip)
        if not block.well:
            drawing.line(x - radius - 3, y - radius - 3, x + radius + 3, y + radius + 3, "cross")
            drawing.line(x - radius - 3, y + radius + 3, x + radius + 3, y - radius - 3, "cross")
    _names(drawing, [block.name for block in blocks], step, bottom)
    _legend(drawing)
    return drawing


def _axis(drawing: Drawing, scale: Log, bottom: float) -> None:
    for tick in scale.ticks(6):
        drawing.line(_LEFT, scale(tick), drawing.width - _RIGHT, scale(tick), "grid")
        drawing.label(_LEFT - 8, scale(tick) + 4, _power(tick), "label", "end")
    drawing.line(_LEFT, bottom, drawing.width - _RIGHT, bottom, "axis")
    drawing.label(_LEFT - 8, bottom + 4, "exact", "label", "end")


def _power(tick: float) -> str:
    return number(tick).removeprefix("1.0 × ")


def _names(drawing: Drawing, names: Sequence[str], step: float, bottom: float) -> None:
    """As many names as there is room for, the first and the last among them."""
    short = [name.rpartition(".")[2] for name in names]
    room = max([text_width(name) for name in short], default=1.0) + 10
    every = max(1, -(-int(room) // max(int(step), 1)))
    shown = {0, len(names) - 1}
    for i in range(every, len(names) - every, every):
        shown.add(i)
    for i in sorted(shown) if names else ():
        drawing.label(_LEFT + (i + 0.5) * step, bottom + 16, short[i], "label", "middle")
    drawing.label((drawing.width + _LEFT) / 2, bottom + 36, "block", "label quiet", "middle")


def _legend(drawing: Drawing) -> None:
    drawing.dot(_LEFT + 5, 10, 4.5, "dot ours")
    drawing.label(_LEFT + 16, 14, "error the block adds")
    x = _LEFT + 16 + text_width("error the block adds") + 18
    drawing.rect(x, 4, 14, 12, "floor")
    drawing.line(x, 4, x + 14, 4, "floor-edge")
    drawing.label(x + 20, 14, "noise floor")
