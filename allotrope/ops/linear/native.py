"""What the native linear layers need of memory, as `native/core/product.h` and `codes.h` use it."""

from __future__ import annotations

from allotrope.ops.contract import Problem
from allotrope.ops.native import aligned

PANELS = {"weight": "panels", "bias": "rows"}
PANEL = 16  # outputs
_TALLEST, _CHUNK = 12, 240  # rows of the tallest tile, and of a chunk, on any instruction set
_STRIP, _BLOCK = 8, 256  # panels that a thread takes together; inputs of a block
_STRETCH = 512  # inputs of whose codes there is one sum, where there are no groups
_FILLED = 8  # to a multiple of what inputs are filled up
_TILE_ROWS, _TILE_INPUTS = 16, 64  # of AMX, where codes meet codes


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _rows(problem: Problem) -> int:
    """The most rows that lie in tiles at a time."""
    rows = problem.axes["rows"]
    return _up(min(rows, _CHUNK), _TALLEST)


def room(problem: Problem, threads: int) -> int:
    """Activations in tiles; and per thread, for many rows, totals and a block of weights made wide."""
    rows = _rows(problem)
    tiles = aligned(4 * rows * _up(problem.axes["in"], _FILLED))
    own = 4 * PANEL * (_STRIP * rows + 2 * _BLOCK)
    return tiles + (threads * own if problem.axes["rows"] > 1 else 0)


def coded_room(problem: Problem, threads: int) -> int:
    """Codes of activations, their sums per group or stretch, their scales; for one row or two each thread's own.

    For many rows in tiles a thread has two panels of weights as bytes, too.
    """
    rows = max(_rows(problem), _up(min(problem.axes["rows"], _CHUNK), _TILE_ROWS))
    inputs = _up(problem.axes["in"], _TILE_INPUTS)
    sums = max(problem.axes["groups"], -(-inputs // _STRETCH))
    one = aligned(rows * inputs) + aligned(4 * rows * sums) + aligned(4 * rows)
    return one * threads if problem.axes["rows"] <= 2 else one + threads * 2 * PANEL * inputs
