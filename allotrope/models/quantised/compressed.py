"""compressed-tensors' layouts: [out, in], signed codes, signed zero points.

    pack-quantized   weight_packed       int32 [out, ⌈in · bits / 32⌉]      code + 2^(bits−1), words along the inputs
                     weight_shape        int64 [2]                          out, in
                     weight_zero_point   int32 [⌈out · bits / 32⌉, groups]  zero + 2^(bits−1), words along the outputs;
                                         int8 [out, groups]                 as older versions of the library wrote it
    the others       weight              int8 or e4m3 [out, in]
                     weight_zero_point   int8 [out, groups]
    all              weight_scale        [out, groups]; [out, 1] per channel; [1] per tensor
                     weight_g_idx        int32 [in]                         each input's group, if they are ordered

A symmetric weight has no zero points, or they are stored and all 0.
"""

from __future__ import annotations

import numpy as np

from allotrope.errors import UsageError
from allotrope.models.quantised.codes import FP8_NAN, NUMBERS, Array, Codes
from allotrope.models.quantised.fits import check_fits
from allotrope.models.quantised.parts import Parts, in_order
from allotrope.models.quantised.stored import Stored
from allotrope.models.quantised.words import pack_words, signed, unpack_words, unsigned

PACKED = "pack-quantized"


def unpack(parts: Parts, stored: Stored) -> Codes:
    """One module's codes; e4m3 as raw bytes."""
    packed = stored.form == PACKED
    codes = _packed(parts, stored) if packed else _plain(parts, stored)
    weight = "weight_packed" if packed else "weight"
    outputs, inputs = codes.shape
    groups = parts.groups(weight, inputs, stored)
    scales = _scales(parts, stored, (outputs, groups))
    zeros = _zeros(parts, stored, (outputs, groups))
    order = parts.order("weight_g_idx", inputs, groups, stored)
    return Codes(stored.number, codes, scales, zeros, None if groups == 1 else stored.group, order)


def pack(codes: Codes, stored: Stored) -> dict[str, Array]:
    """The module's tensors, as today's library writes them."""
    check_fits(codes, stored)
    outputs, inputs = codes.codes.shape
    found: dict[str, Array] = {}
    if stored.form == PACKED:
        found["weight_packed"] = pack_words(unsigned(codes.codes, stored.bits), stored.bits)
        found["weight_shape"] = np.array([outputs, inputs], np.int64)
    else:
        found["weight"] = codes.codes
    found["weight_scale"] = codes.scales
    if stored.per_tensor:
        if (codes.scales != codes.scales[0]).any():
            raise UsageError("the codes' scales differ", remedy=f"these are to be written as {stored.words}")
        found["weight_scale"] = codes.scales[0].copy()
    if not stored.symmetric:
        zeros = np.zeros(codes.scales.shape, np.int8) if codes.zeros is None else codes.zeros
        if stored.per_tensor:
            if (zeros != zeros[0]).any():
                raise UsageError("the codes' zero points differ", remedy=f"these are to be written as {stored.words}")
            zeros = zeros[0].copy()
        elif stored.form == PACKED:
            across = pack_words(np.ascontiguousarray(unsigned(zeros, stored.bits).T), stored.bits)
            zeros = np.ascontiguousarray(across.T)
        found["weight_zero_point"] = zeros
    if stored.desc_act:
        groups = codes.scales.shape[1]
        found["weight_g_idx"] = in_order(inputs, groups) if codes.order is None else codes.order
    return found


def _packed(parts: Parts, stored: Stored) -> Array:
    shape = parts.shaped("weight_shape", (2,), "int64", "int32")
    words = parts.matrix("weight_packed", "int32")
    outputs, inputs = (int(size) for size in shape)
    if words.shape != (outputs, -(-inputs * stored.bits // 32)):
        said = f"[{outputs}, {inputs}] in {stored.bits} bits"
        raise parts.bad("weight_packed", f"has shape {list(words.shape)}, which cannot hold weight_shape's {said}")
    return signed(unpack_words(words, stored.bits)[:, :inputs], stored.bits)


def _plain(parts: Parts, stored: Stored) -> Array:
    kind, low, high = NUMBERS[stored.number]
    codes = parts.matrix("weight", "fp8" if kind == "u1" else "int8")
    if stored.floating:
        if bad := int(np.isin(codes, FP8_NAN).sum()):
            raise parts.bad("weight", f"holds {bad} values that are NaN")
    elif codes.min() < low or codes.max() > high:
        raise parts.bad("weight", f"holds {codes.min()} to {codes.max()}, which are no {stored.bits}-bit numbers")
    return codes


def _scales(parts: Parts, stored: Stored, shape: tuple[int, int]) -> Array:
    if not stored.per_tensor:
        return parts.scales("weight_scale", shape)
    given = parts.arrays.get("weight_scale")
    one = parts.scales("weight_scale", () if given is not None and given.ndim == 0 else (1,))
    return np.full(shape, one.reshape(()), one.dtype)


def _zeros(parts: Parts, stored: Stored, shape: tuple[int, int]) -> Array | None:
    """The zero points, [out, groups]; None for a symmetric weight."""
    name, given = "weight_zero_point", parts.arrays.get("weight_zero_point")
    if stored.symmetric:
        if given is not None and given.any():
            raise parts.bad(name, "is not zero, but the config says symmetric")
        return None
    if stored.per_tensor:
        one = parts.shaped(name, () if given is not None and given.ndim == 0 else (1,), "int8")
        zeros: Array = np.full(shape, one.reshape(()), np.int8)
    elif stored.form == PACKED and parts.take(name, "int32", "int8").dtype == np.int32:
        words = parts.shaped(name, (-(-shape[0] * stored.bits // 32), shape[1]), "int32")
        across = unpack_words(words.T, stored.bits)[:, : shape[0]]
        zeros = np.ascontiguousarray(signed(across, stored.bits).T)
    else:
        zeros = parts.shaped(name, shape, "int8")
    _, low, high = NUMBERS[stored.number]
    if zeros.min() < low or zeros.max() > high:
        raise parts.bad(name, f"holds {zeros.min()} to {zeros.max()}, which are no {stored.bits}-bit numbers")
    return zeros
