"""Activations in eight bits: what their codes and scales are, to the bit, for everyone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOPS = {"int8": 127.0, "fp8": 448.0}  # the code of a row's largest magnitude
CODE_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_BLOCK = 2**20  # activations that are quantised at a time, so that what is held beside them stays small


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations [..., width] as codes (int8 or e4m3) and one fp32 scale per row, [..., 1]."""

    codes: Tensor
    scales: Tensor


def quantise_rows(values: Tensor, form: str) -> Rows:
    """Each row by its own largest magnitude. A row that holds NaN or infinity becomes NaN as a whole.

        scale = max|x| / top, at least fp32's smallest normal
        code  = x / scale, rounded to the nearest, ties to even

    Both are fp32's true divisions, each rounded once. A code is a step function of these: with a reciprocal in
    place of a division, or in fp64, some codes would be others.
    """
    wide = values.float()
    peaks = wide.abs().amax(-1, keepdim=True)
    # The divisor lies on the device: by a number of the host's, torch multiplies with the reciprocal on a GPU.
    scales = (peaks / torch.full_like(peaks, TOPS[form])).clamp(min=torch.finfo(torch.float32).tiny)
    steps = (wide / scales).clamp(-TOPS[form], TOPS[form])
    if form == "int8":
        steps = steps.round().nan_to_num()  # a NaN has no integer; its scale carries it
    return Rows(steps.to(CODE_DTYPES[form]), torch.where(scales.isfinite(), scales, torch.nan))


def quantise_into(codes: Tensor, scales: Tensor, x: Tensor, form: str) -> None:
    """`quantise_rows` of x [rows, in] into codes [rows, in] and fp32 scales [rows, 1]: some rows at a time."""
    step = max(1, _BLOCK // x.shape[1])
    for start in range(0, len(x), step):
        found = quantise_rows(x[start : start + step], form)
        codes[start : start + step].copy_(found.codes)
        scales[start : start + step].copy_(found.scales)
