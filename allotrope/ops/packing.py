"""How a weight lies in the engine's file: packings, each with its exact inverse.

A packed weight is made of one or more parts (the checkpoint's own matrices, in slot order); fusing q, k
and v is packing three parts into one. Packings move data and never change a bit, so they work on raw
NumPy arrays whatever the dtype means (bf16 travels as uint16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RawArray = npt.NDArray[Any]


@dataclass(frozen=True)
class Packing:
    """`unpack(pack(parts), shapes)` gives the parts back, bit for bit."""

    name: str
    pack: Callable[[Sequence[RawArray]], RawArray]
    unpack: Callable[[RawArray, Sequence[tuple[int, ...]]], list[RawArray]]
    shape: Callable[[Sequence[tuple[int, ...]]], tuple[int, ...]]
    piece: int = (
        0  # so many rows, and any multiple, can be packed by themselves, one after the other; 0: only all at once
    )
    copies: bool = False  # whether `unpack` makes new arrays; otherwise it gives views


def _stacked(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _split_rows(packed: RawArray, shapes: Sequence[tuple[int, ...]]) -> list[RawArray]:
    ends = np.cumsum([shape[0] for shape in shapes])[:-1]
    return list(np.split(packed, ends, axis=0))


def _pack_rows(parts: Sequence[RawArray]) -> RawArray:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0))


PANEL = 16  # outputs side by side: the lanes of the widest registers
QUAD = 4  # bytes of an output side by side: what a dot product of bytes takes


def _whole(parts: Sequence[RawArray]) -> RawArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0)


def _into_panels(parts: Sequence[RawArray]) -> RawArray:
    """One new array and no other: a weight may be most of a model."""
    stacked = _whole(parts)
    rows, width = stacked.shape
    full = rows // PANEL
    packed = np.zeros(_panels([stacked.shape]), stacked.dtype)
    packed[:full] = stacked[: full * PANEL].reshape(full, PANEL, width).swapaxes(1, 2)
    if rows % PANEL:
        packed[full, :, : rows % PANEL] = stacked[full * PANEL :].T
    return packed


def _out_of_panels(packed: RawArray, shapes: Sequence[tuple[int, ...]]) -> list[RawArray]:
    rows = packed.swapaxes(1, 2).reshape(-1, packed.shape[1])
    return _split_rows(rows[: _stacked(shapes)[0]], shapes)


def _panels(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rows, width = _stacked(shapes)
    return -(-rows // PANEL), width, PANEL


def _into_quads(parts: Sequence[RawArray]) -> RawArray:
    stacked = _whole(parts)
    rows = len(stacked)
    packed = np.zeros(_quads([stacked.shape]), stacked.dtype)
    for column in range(QUAD):
        some = stacked[:, column::QUAD]
        into = packed[:, : some.shape[1], :, column].swapaxes(1, 2)  # [out/16, 16, in/4]
        full = rows // PANEL
        into[:full] = some[: full * PANEL].reshape(full, PANEL, some.shape[1])
        if rows % PANEL:
            into[full, : rows % PANEL] = some[full * PANEL :]
    return packed


def _out_of_quads(packed: RawArray, shapes: Sequence[tuple[int, ...]]) -> list[RawArray]:
    rows, width = _stacked(shapes)
    return _split_rows(packed.swapaxes(1, 2).reshape(len(packed) * PANEL, -1)[:rows, :width], shapes)


def _quads(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rows, width = _stacked(shapes)
    return -(-rows // PANEL), -(-width // QUAD), PANEL, QUAD


PACKINGS = {
    packing.name: packing
    for packing in (
        # the checkpoint's own layout, [out, in] for matrices; parts one under the other
        Packing("rows", _pack_rows, _split_rows, _stacked, piece=1),
        # transposed, [in, out]; parts side by side
        Packing(
            "cols",
            lambda parts: np.ascontiguousarray(_pack_rows(parts).T),
            lambda packed, shapes: _split_rows(packed.T, shapes),
            lambda shapes: _stacked(shapes)[::-1],
        ),
        # sixteen outputs side by side, [out/16, in, 16]; filled up with zeros
        Packing("panels", _into_panels, _out_of_panels, _panels, piece=PANEL, copies=True),
        # bytes, four of each of sixteen outputs side by side, [out/16, in/4, 16, 4]; filled up with zeros
        Packing("quads", _into_quads, _out_of_quads, _quads, piece=PANEL, copies=True),
    )
}
