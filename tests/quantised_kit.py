"""Stored weights written value by value in plain Python, as their formats' documentation describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from allotrope.models.quantised.codes import Codes

Array = np.ndarray[Any, Any]
Grid = list[list[int]]


def int32(words: Grid) -> Array:
    """Words of 32 bits, given as Python's unsigned numbers, as a tensor."""
    return np.array([[word - (1 << 32) if word >> 31 else word for word in row] for row in words], np.int32)


def grid(rows: int, columns: int, low: int, high: int, seed: int = 0) -> Grid:
    """Random whole numbers, both bounds among them."""
    found = np.random.default_rng(seed).integers(low, high + 1, (rows, columns)).tolist()
    found[0][0], found[-1][-1] = low, high
    return found


def reals(rows: int, columns: int, dtype: str = "fp16", seed: int = 1) -> Array:
    """Random scales; bf16 as the upper halves of float32."""
    found = np.random.default_rng(seed).uniform(0.001, 0.1, (rows, columns)).astype(np.float32)
    if dtype == "bf16":
        return (found.view(np.uint32) >> 16).astype(np.uint16)
    return found.astype({"fp16": np.float16, "fp32": np.float32}[dtype])


def real(scale: Any) -> float:
    """A scale's value."""
    if isinstance(scale, np.uint16):
        return float(np.array([int(scale) << 16], np.uint32).view(np.float32)[0])
    return float(scale)


def dequantised(codes: Grid, zeros: Grid, scales: Array, group_of: list[int], dtype: Any) -> Array:
    """(code − zero) · scale, one after the other; all matrices [out, ·]."""
    found = np.empty((len(codes), len(codes[0])), dtype)
    for o, row in enumerate(codes):
        for i, code in enumerate(row):
            g = group_of[i]
            found[o, i] = dtype(code - zeros[o][g]) * dtype(real(scales[o, g]))
    return found


def same(one: Array, other: Array) -> None:
    """Equal in dtype, shape and every bit."""
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other, strict=True)


def means(found: Codes, wanted: Array, dtype: Any) -> None:
    """The codes stand for these numbers, in this precision."""
    same(found.dequantised("fp64" if dtype is np.float64 else "fp32"), wanted)


def same_tensors(back: Mapping[str, Array], tensors: Mapping[str, Array]) -> None:
    """What was written is what had been read, name by name."""
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        same(back[name], tensor)


def shuffled(inputs: int, groups: int, seed: int = 2) -> list[int]:
    """Each input's group, out of order, all groups equally often."""
    return np.random.default_rng(seed).permutation(np.arange(inputs) // (inputs // groups)).tolist()
