"""Small numbers in 32-bit words, the first in the lowest bits, as all three layouts have it.

bits 4:   31…28  27…24  23…20  19…16  15…12  11…8   7…4   3…0        bits 8:   31…24  23…16  15…8   7…0
number      7      6      5      4      3      2     1     0         number      3      2      1     0
"""

from __future__ import annotations

import numpy as np

from allotrope.models.quantised.codes import Array

_WORD = np.dtype("<i4")


def unpack_words(words: Array, bits: int) -> Array:
    """int32 [rows, n] → uint8 [rows, n · 32 / bits]."""
    raw = np.ascontiguousarray(words, _WORD).view(np.uint8)
    if bits == 8:
        return raw.copy()
    found = np.empty((raw.shape[0], 2 * raw.shape[1]), np.uint8)
    found[:, 0::2] = raw & 15
    found[:, 1::2] = raw >> 4
    return found


def pack_words(numbers: Array, bits: int) -> Array:
    """uint8 [rows, m] → int32 [rows, ⌈m · bits / 32⌉], the last word filled up with zeros."""
    rows, count = numbers.shape
    padded = np.zeros((rows, -(-count * bits // 32) * 32 // bits), np.uint8)
    padded[:, :count] = numbers
    if bits == 4:
        padded = padded[:, 0::2] | padded[:, 1::2] << 4
    return np.ascontiguousarray(padded).view(_WORD)


def signed(numbers: Array, bits: int) -> Array:
    """uint8 from 0 to int8 from −2^(bits−1); bytes wrap round, so nothing overflows."""
    return np.ascontiguousarray(numbers - np.uint8(1 << bits - 1)).view(np.int8)


def unsigned(numbers: Array, bits: int) -> Array:
    """The inverse of `signed`."""
    return np.ascontiguousarray(numbers).view(np.uint8) + np.uint8(1 << bits - 1)
