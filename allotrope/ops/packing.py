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


def _stacked(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _split_rows(packed: RawArray, shapes: Sequence[tuple[int, ...]]) -> list[RawArray]:
    ends = np.cumsum([shape[0] for shape in shapes])[:-1]
    return list(np.split(packed, ends, axis=0))


def _pack_rows(parts: Sequence[RawArray]) -> RawArray:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0))


PACKINGS = {
    packing.name: packing
    for packing in (
        # the checkpoint's own layout, [out, in] for matrices; parts one under the other
        Packing("rows", _pack_rows, _split_rows, _stacked),
        # transposed, [in, out]; parts side by side
        Packing(
            "cols",
            lambda parts: np.ascontiguousarray(_pack_rows(parts).T),
            lambda packed, shapes: _split_rows(packed.T, shapes),
            lambda shapes: _stacked(shapes)[::-1],
        ),
    )
}
