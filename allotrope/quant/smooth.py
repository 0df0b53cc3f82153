"""Activations in eight bits, a scale per token, and SmoothQuant, which makes them fit.

A few loud channels set every token's scale, and the others drown in its steps. SmoothQuant divides the channels by
s = max|x|^a / max|w|^(1−a) and multiplies the weights' columns by it; the strength a is searched, per input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from allotrope.errors import UsageError
from allotrope.ops.rows import TOPS, Rows
from allotrope.ops.rows import quantise_rows as in_codes
from allotrope.quant.formats import Format, Quantised, decode
from allotrope.quant.rounding import round_to_nearest
from allotrope.quant.shared import Shared, tidy

_STRENGTHS = tuple(step / 20 for step in range(2, 20))
_WIDE = Format("int8")


@dataclass(frozen=True, eq=False)
class Smoothing:
    """What was found: the op before is to give its output divided by `scales`, and the weights are to be multiplied.

    `strength` is None where no smoothing is best, and all scales are 1. Errors are the outputs' on the sample with
    weights and activations in eight bits, relative to them in RMS: `plain` is without smoothing.
    """

    scales: torch.Tensor
    strength: float | None
    error: float
    plain: float


def quantise_rows(values: torch.Tensor, form: Format = _WIDE) -> Rows:
    """As the engine's ops quantise them (`ops.rows.quantise_rows`), in a format as `quant` has it."""
    _per_row(form)
    if form.name not in TOPS:
        raise UsageError(f"activations are to be {form.name}; they can be {' or '.join(TOPS)}")
    return in_codes(values, form.name)


def product(rows: Rows, weight: Quantised, dtype: torch.dtype) -> torch.Tensor:
    """rows · weightᵀ [..., out]: codes multiplied and summed exactly, then the scales in fp64, rounded once."""
    _per_row(weight.format)
    summed = rows.codes.double() @ decode(weight.codes, _one(weight), weight.zeros, torch.float64).T
    return (summed * rows.scales.double() * weight.scales.double().T).to(dtype)


def smooth_scales(peaks: torch.Tensor, weights: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """max|x|^a / max|w|^(1−a) for each channel [in]; 1 for channels where either is all zero."""
    if not 0 <= strength <= 1:
        raise UsageError(f"smoothing strength is {strength}; it must be from 0 to 1")
    columns = torch.stack([weight.abs().amax(0).double() for weight in weights.values()]).amax(0)
    live = (peaks > 0) & (columns > 0)
    return tidy(torch.where(live, peaks.double() ** strength / columns ** (1 - strength), 0.0))


def smooth(shared: Shared, form: Format = _WIDE, *, peaks: torch.Tensor | None = None) -> Smoothing:
    """The strength with the least error of the 8-bit products, none among the choices.

    `peaks`: each channel's largest magnitude over the whole calibration, where the sample is only a part of it.
    """
    highest = shared.inputs.abs().amax(0) if peaks is None else peaks

    def outputs(path: str, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return product(quantise_rows(inputs, form), round_to_nearest(weight, form, path), torch.float32)

    none = torch.ones(shared.width, device=shared.inputs.device)
    plain = shared.error(none, outputs)
    best = Smoothing(none, None, plain, plain)
    for strength in _STRENGTHS:
        scales = smooth_scales(highest, shared.weights, strength)
        error = shared.error(scales, outputs)
        if error < best.error:
            best = Smoothing(scales, strength, error, plain)
    return best


def _one(weight: Quantised) -> torch.Tensor:
    return torch.ones(1, device=weight.codes.device)


def _per_row(form: Format) -> None:
    if form.group is not None:
        problem = f"8-bit activations are to meet {form}; their products need one scale per row"
        raise UsageError(problem, remedy="take int8 or fp8 weights without a group size")
