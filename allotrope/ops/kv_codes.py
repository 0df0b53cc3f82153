"""Keys and values in fewer bits, in the rows that `kv_rows` lays out. In eight, with a scale per token and head:

    scale = max |x| / 127 (int8) or / 448 (e4m3), in fp32        code = x / scale, rounded to nearest, ties to even

A head that holds NaN or infinity becomes NaN as a whole, by its scale; one that is all zero stays zero.
In fp16 each number is rounded by itself: a finite one beyond fp16's largest becomes that, any other NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allotrope.ops.kv_rows import CODED, COMPUTE, scales_at

_TOP = {"int8": 127.0, "fp8": 448.0, "fp16": 65504.0}
_CODE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "fp16": torch.float16}
_NAN = 0x7E00  # in fp16


def coded(values: Tensor, heads: int, form: str) -> Tensor:
    """Rows [..., heads · head_dim] as bytes [..., row width]. Bit for bit the same on every device."""
    top = _TOP[form]
    if form not in CODED:
        kept = values.float()
        halves = kept.clamp(-top, top).to(_CODE[form]).contiguous().view(torch.int16)
        return halves.masked_fill_(~kept.isfinite(), _NAN).view(torch.uint8)  # one NaN for all devices
    wide = torch.unflatten(values.float(), -1, (heads, -1))
    peak = wide.abs().amax(-1, keepdim=True)
    # A tensor, for by a number CUDA would not divide but multiply with its reciprocal.
    scales = (peak / peak.new_full((1,), top)).clamp_(min=torch.finfo(torch.float32).tiny)
    scales.masked_fill_(~scales.isfinite(), torch.nan)
    steps = (wide / scales).clamp_(-top, top).nan_to_num_(nan=0.0)
    codes = (steps.round_() if form == "int8" else steps).to(_CODE[form])
    width = values.shape[-1]
    spare = codes.new_zeros((*values.shape[:-1], scales_at(heads, width // heads) - width), dtype=torch.uint8)
    return torch.cat((codes.view(torch.uint8).flatten(-2), spare, scales.squeeze(-1).view(torch.uint8)), -1)


def parts(rows: Tensor, heads: int, head_dim: int, form: str) -> tuple[Tensor, Tensor | None]:
    """Codes [..., heads, head_dim] and scales [..., heads], if there are any, of rows [..., row width]: views."""
    if form not in CODED:
        return torch.unflatten(rows.view(_CODE[form]), -1, (heads, head_dim)), None
    codes = torch.unflatten(rows[..., : heads * head_dim].view(_CODE[form]), -1, (heads, head_dim))
    return codes, rows[..., scales_at(heads, head_dim) :].view(torch.float32)


def widened(codes: Tensor) -> Tensor:
    """Codes as fp32, dense, whatever their strides. No code of ours is NaN: scales are."""
    if codes.dtype != torch.float8_e4m3fn or codes.is_cuda:
        return torch.empty(codes.shape, dtype=torch.float32, device=codes.device).copy_(codes)
    # torch takes ten times as long on a CPU. Moved by 7 bits, e4m3's exponent and mantissa are fp16's, over 2⁸:
    # seeeemmm as an int16 is sssssssss eeeemmm, and becomes s·eeeemmm0000000 where bit 14 is cleared.
    bits = torch.empty(codes.shape, dtype=torch.int16).copy_(codes.view(torch.int8))
    halves = bits.mul_(1 << 7).bitwise_and_(~(1 << 14)).view(torch.float16)
    return halves.float().mul_(256)


def decoded(rows: Tensor, heads: int, head_dim: int, form: str, dtype: torch.dtype) -> Tensor:
    """What rows [..., row width] mean, [..., heads, head_dim]: code · scale in fp32 (fp64 for fp64), rounded once."""
    codes, scales = parts(rows, heads, head_dim, form)
    if scales is None:
        return codes.to(dtype)
    if dtype == torch.float64:
        return codes.double() * scales.double().unsqueeze(-1)
    return widened(codes).mul_(scales.unsqueeze(-1)).to(dtype)


def read(rows: Tensor, heads: int, head_dim: int, form: str, dtype: torch.dtype) -> Tensor:
    """Rows [..., row width] of a cache of any form, [..., heads, head_dim]; `dtype` is for narrow ones."""
    if form == COMPUTE:
        return torch.unflatten(rows, -1, (heads, head_dim))
    return decoded(rows, heads, head_dim, form, dtype)


def fake(values: Tensor, heads: int, form: str) -> Tensor:
    """What is read when `values` [..., heads · head_dim] have been written, in their dtype."""
    if form == COMPUTE:
        return values
    return decoded(coded(values, heads, form), heads, values.shape[-1] // heads, form, values.dtype).flatten(-2)
