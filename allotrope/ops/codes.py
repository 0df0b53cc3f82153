"""Numbers in few bits: codes, in the bytes in which they are stored, and scales that give them their size back.

weight ≈ (code − zero) · scale        one scale (and zero) per row, or per group of neighbours in a row

int8   a byte each, −128 … 127
int4   two to a byte, the even column in the low half: −8 … 7, or with zeros 0 … 15
fp8    a byte each, e4m3
"""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(packed: Tensor, form: str, signed: bool = True) -> Tensor:
    """Bytes [out, packed] as codes [out, in]: int8, or e4m3 for fp8. `signed` is about int4 alone."""
    if form == "fp8":
        return packed.view(torch.float8_e4m3fn)
    if form == "int8":
        return packed.view(torch.int8)
    # each byte as the two bytes of an int16, the low half first
    pairs = packed.to(torch.int16)
    pairs = pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
    if not signed:
        return pairs.view(torch.int8)
    return pairs.bitwise_xor_(0x0808).view(torch.int8).sub_(8)  # the fourth bit is the sign


def decoded(packed: Tensor, scales: Tensor, zeros: Tensor | None, form: str, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that is meant: computed in fp32 (fp64 where that is asked for) and rounded once."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes = unpacked(packed, form, zeros is None)
    room = torch.empty(codes.shape, dtype=wide, device=codes.device)
    return decode_into(room, packed, scales, zeros, form).to(dtype)


def decode_into(room: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, form: str) -> Tensor:
    """`decoded`, in dense memory that is given, fp32 or fp64."""
    steps_into(room, packed, form, zeros is None)
    grouped = room.view(len(room), scales.shape[1], -1)
    if zeros is not None:
        grouped.sub_(zeros.to(room.dtype).unsqueeze(-1))
    grouped.mul_(scales.to(room.dtype).unsqueeze(-1))
    return room


def steps_into(room: Tensor, packed: Tensor, form: str, signed: bool = True) -> None:
    """The codes as numbers, in dense memory that is given, fp32 or fp64."""
    if form == "fp8" and room.device.type == "cpu" and not _holds_nan(packed):
        # torch widens e4m3 one by one, but fp16 many at a time: the same bits, eight powers of two lower
        halves = packed.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4080)
        room.copy_(halves.view(torch.float16)).mul_(256)
    else:
        room.copy_(unpacked(packed, form, signed))


def _holds_nan(packed: Tensor) -> bool:
    """Whether a byte is one of e4m3's two NaNs, 0x7f and 0xff."""
    return packed.numel() > 0 and (int(packed.view(torch.int8).max()) == 0x7F or int(packed.max()) == 0xFF)
