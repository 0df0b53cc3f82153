"""Raw weights between dtypes on the host, rounding to nearest even, in pieces that stay in cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# tag: the numpy dtype that carries it; bf16 and fp8 (e4m3) travel as their raw bits.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "fp64": np.dtype("<f8"),
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "fp8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
FLOATS = ("fp64", "fp32", "fp16", "bf16")
_PIECE = 1 << 16  # values at a time
# tag: (the integer of its width, its exponent's bits; all ones means infinity or NaN)
_EXPONENT: dict[str, tuple[str, int]] = {
    "fp64": ("<u8", 0x7FF0_0000_0000_0000),
    "fp32": ("<u4", 0x7F80_0000),
    "fp16": ("<u2", 0x7C00),
    "bf16": ("<u2", 0x7F80),
}


def cast(array: Array, source: str, target: str) -> Array:
    """A float array of dtype `source` as dtype `target`; the array itself if they are the same.

    Values too large for the target become infinite, as IEEE 754 has it; NaN stays NaN.
    """
    if source not in FLOATS or target not in FLOATS:
        raise ValueError(f"no cast from {source} to {target}")
    if source == target:
        return array
    out = np.empty(array.shape, DTYPES[target])
    flat, into = np.ascontiguousarray(array).reshape(-1), out.reshape(-1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for at in range(0, flat.size, _PIECE):
            into[at : at + _PIECE] = _cast(flat[at : at + _PIECE], source, target)
    return out


def _cast(piece: Array, source: str, target: str) -> Array:
    if source == "bf16":
        wide = (piece.astype(np.uint32) << 16).view(np.float32)
        return wide.astype(DTYPES[target], copy=False)
    if target == "bf16":
        return _to_bf16(_odd(piece) if source == "fp64" else piece.astype(np.float32, copy=False))
    return piece.astype(DTYPES[target])


def _to_bf16(piece: Array) -> Array:
    """The upper half of fp32, rounded to nearest even; a NaN keeps its sign and is made quiet."""
    bits = piece.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(piece), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _odd(piece: Array) -> Array:
    """fp64 to fp32 rounded to odd, so that the rounding to bf16 that follows sees what was cut off."""
    near = piece.astype(np.float32)
    back, bits = near.astype(np.float64), near.view(np.int32)
    # Bits of a float grow with its magnitude: stepping them down truncates towards zero.
    cut = np.where(np.abs(back) > np.abs(piece), bits - 1, bits)
    exact = (back == piece) | np.isnan(piece)
    return np.where(exact, bits, cut | 1).astype(np.int32).view(np.float32)


def find_nonfinite(array: Array, dtype: str) -> int:
    """How many of the values are NaN or infinite, read once and in pieces."""
    if dtype not in _EXPONENT:
        return 0
    width, mask = _EXPONENT[dtype]
    bits = np.ascontiguousarray(array).reshape(-1).view(width)
    limit = bits.dtype.type(mask)
    return sum(int(np.count_nonzero((bits[at : at + _PIECE] & limit) == limit)) for at in range(0, bits.size, _PIECE))
