"""Weights in few bits: codes, in the bytes in which they are stored, and scales that give them their size back.

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
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).view(torch.int8)
    return (codes ^ 8) - 8 if signed else codes  # the fourth bit is the sign


def decoded(packed: Tensor, scales: Tensor, zeros: Tensor | None, form: str, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that is meant: computed in fp32 (fp64 where that is asked for) and rounded once."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    steps = unpacked(packed, form, zeros is None).to(wide)
    grouped = steps.view(len(steps), scales.shape[1], -1)
    if zeros is not None:
        grouped = grouped - zeros.to(wide).unsqueeze(-1)
    return (grouped * scales.to(wide).unsqueeze(-1)).view(steps.shape).to(dtype)
