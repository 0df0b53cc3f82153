"""AutoAWQ's GEMM layout: [in, out], words along the outputs, eight of them in an order of their own.

qweight   int32 [in, out / 8]        qzeros   int32 [groups, out / 8]        scales   [groups, out]

bits      31…28  27…24  23…20  19…16  15…12  11…8   7…4   3…0
output      7      5      3      1      6      4     2     0       of the eight that share a word
"""

from __future__ import annotations

import numpy as np

from allotrope.errors import UsageError
from allotrope.models.quantised.codes import Array, Codes
from allotrope.models.quantised.fits import check_fits
from allotrope.models.quantised.parts import Parts
from allotrope.models.quantised.stored import Stored
from allotrope.models.quantised.words import pack_words, unpack_words

_HELD = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that each four bits hold, from the lowest
_PER_WORD = len(_HELD)


def unpack(parts: Parts, stored: Stored) -> Codes:
    """One module's codes and zero points, both 0 to 15."""
    words = parts.matrix("qweight", "int32")
    inputs, outputs = words.shape[0], words.shape[1] * _PER_WORD
    groups = parts.groups("qweight", inputs, stored)
    scales = parts.scales("scales", (groups, outputs))
    zeros = parts.shaped("qzeros", (groups, outputs // _PER_WORD), "int32")
    return Codes(
        stored.number,
        _outputs(words),
        np.ascontiguousarray(scales.T),
        _outputs(zeros),
        None if groups == 1 else stored.group,
    )


def pack(codes: Codes, stored: Stored) -> dict[str, Array]:
    """The three tensors."""
    check_fits(codes, stored)
    outputs = codes.codes.shape[0]
    if outputs % _PER_WORD:
        raise UsageError(f"an AWQ matrix of {outputs} outputs does not fill its words", remedy="leave it as it is")
    zeros = np.zeros(codes.scales.shape, np.uint8) if codes.zeros is None else codes.zeros
    return {
        "qweight": _words(codes.codes),
        "qzeros": _words(zeros),
        "scales": np.ascontiguousarray(codes.scales.T),
    }


def _outputs(words: Array) -> Array:
    """int32 [rows, out / 8] → uint8 [out, rows]."""
    held = unpack_words(words, 4).reshape(words.shape[0], -1, _PER_WORD)
    found = np.empty_like(held)
    found[:, :, _HELD] = held
    return np.ascontiguousarray(found.reshape(words.shape[0], -1).T)


def _words(numbers: Array) -> Array:
    """uint8 [out, rows] → int32 [rows, out / 8]."""
    eights = numbers.T.reshape(numbers.shape[1], -1, _PER_WORD)
    return pack_words(eights[:, :, _HELD].reshape(numbers.shape[1], -1), 4)
