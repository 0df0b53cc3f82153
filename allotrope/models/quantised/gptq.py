"""GPTQ's layout, as AutoGPTQ and GPTQModel write it: [in, out], words along the inputs.

    qweight   int32 [in · bits / 32, out]        word r of column o: inputs r · 32/bits and on
    qzeros    int32 [groups, out · bits / 32]    word c of row g: outputs c · 32/bits and on
    scales    [groups, out]
    g_idx     int32 [in]                         each input's group; older files of models in order lack it

The first layout (`checkpoint_format` "gptq") stores each zero point less one, the second ("gptq_v2") as it is.
"""

from __future__ import annotations

import numpy as np

from allotrope.errors import UsageError
from allotrope.models.quantised.codes import Array, Codes
from allotrope.models.quantised.fits import check_fits
from allotrope.models.quantised.parts import Parts, in_order
from allotrope.models.quantised.stored import Stored
from allotrope.models.quantised.words import pack_words, signed, unpack_words, unsigned


def unpack(parts: Parts, stored: Stored) -> Codes:
    """One module's codes. Symmetric ones come out signed and without zeros."""
    per_word = 32 // stored.bits
    words = parts.matrix("qweight", "int32")
    inputs, outputs = words.shape[0] * per_word, words.shape[1]
    if outputs % per_word:
        raise parts.bad("qweight", f"has {outputs} outputs, which is no multiple of {per_word}")
    groups = parts.groups("qweight", inputs, stored)
    scales = parts.scales("scales", (groups, outputs))
    zeros = _zeros(parts, stored, (groups, outputs))
    order = parts.order("g_idx", inputs, groups, stored)
    codes = unpack_words(words.T, stored.bits)
    half = 1 << stored.bits - 1
    if stored.symmetric:
        if (zeros != half).any():
            raise parts.bad("qzeros", f"holds zero points other than {half}, but the config says symmetric")
        codes = signed(codes, stored.bits)
    return Codes(
        stored.number,
        codes,
        np.ascontiguousarray(scales.T),
        None if stored.symmetric else np.ascontiguousarray(zeros.T),
        None if groups == 1 else stored.group,
        order,
    )


def pack(codes: Codes, stored: Stored) -> dict[str, Array]:
    """The four tensors."""
    check_fits(codes, stored)
    outputs, inputs = codes.codes.shape
    if outputs % (32 // stored.bits) or inputs % (32 // stored.bits):
        raise UsageError(f"a GPTQ matrix of {outputs} × {inputs} does not fill its words", remedy="leave it as it is")
    half = 1 << stored.bits - 1
    numbers, zeros = codes.codes, codes.zeros
    if stored.symmetric:
        numbers = unsigned(numbers, stored.bits)
        zeros = np.full(codes.scales.shape, half, np.uint8)
    elif zeros is None:
        zeros = np.zeros(codes.scales.shape, np.uint8)
    if stored.zero_offset and not zeros.min():
        raise UsageError("GPTQ's first layout cannot store a zero point of 0", remedy="write gptq_v2")
    order = in_order(inputs, codes.scales.shape[1]) if codes.order is None else codes.order
    return {
        "qweight": np.ascontiguousarray(pack_words(numbers, stored.bits).T),
        "qzeros": pack_words(np.ascontiguousarray(zeros.T) - np.uint8(stored.zero_offset), stored.bits),
        "scales": np.ascontiguousarray(codes.scales.T),
        "g_idx": order,
    }


def _zeros(parts: Parts, stored: Stored, shape: tuple[int, int]) -> Array:
    """The zero points, [groups, out]."""
    groups, outputs = shape
    words = parts.shaped("qzeros", (groups, outputs * stored.bits // 32), "int32")
    zeros = unpack_words(words, stored.bits)
    most = (1 << stored.bits) - 1
    if stored.zero_offset and zeros.max() == most:
        # AutoGPTQ's kernels wrap it round to 0, vLLM's take 2^bits, GPTQModel carries into the next output
        raise parts.bad(
            "qzeros", f"holds {most}, which in GPTQ's first layout means different zeros to different readers"
        )
    return zeros + np.uint8(stored.zero_offset)
