"""Rounding a weight to nearest, and the scales that every method chooses with.

Scales come from a group's extremes and are rounded up to what is stored, so nothing is clipped: each weight's error is
at most half a step (fp8: half the gap between its neighbours). Everything is computed in fp64 by operations that are
exactly defined, so a CPU and a GPU give the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from allotrope.errors import NumericalError
from allotrope.quant.formats import Format, Quantised, decode

Side = tuple[torch.Tensor, torch.Tensor | None]  # scales and zeros
Ends = tuple[torch.Tensor, torch.Tensor]  # of what a group's codes must reach
_BLOCK = 2**22  # weights held in fp64 at a time
_RATIOS = tuple(1 - 0.025 * step for step in range(1, 21))  # where a group may be clipped: 97.5 % … 50 % of its reach


def round_to_nearest(
    weight: torch.Tensor, form: Format, path: str, *, clip: bool = False, moments: torch.Tensor | None = None
) -> Quantised:
    """The weight [out, in] in its format, each code the nearest.

    `clip` tries smaller scales too, which give a group's extremes up for a finer step, and keeps what makes the least
    squared error: of the weights or, given `moments` ([groups, group, group], the sums of x·xᵀ), of the group's output.
    """
    check_weight(weight, form, path)
    codes = torch.empty(weight.shape, dtype=form.code_dtype, device=weight.device)
    scales, zeros = choose_all(weight, form, path, clip=clip, moments=moments)
    start = 0
    for rows in blocks_of_rows(weight):
        here = slice(start, start + len(rows))
        values, last = _grouped(rows, form), None if zeros is None else zeros[here].unsqueeze(-1)
        codes[here] = encode(values, scales[here].unsqueeze(-1), last, form).view(rows.shape)
        start += len(rows)
    return Quantised(form, codes, scales, zeros)


def check_weight(weight: torch.Tensor, form: Format, path: str) -> None:
    """Refuse what cannot be rounded: a shape that the format does not have, NaN, infinity."""
    form.check_shape(weight.shape, path)
    if not all(bool(rows.isfinite().all()) for rows in blocks_of_rows(weight)):
        raise NumericalError("the weight holds NaN or infinity", where=path, remedy="mend the checkpoint")


def blocks_of_rows(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows, so many at a time that a copy in fp64 stays small beside a model."""
    height = max(1, _BLOCK // weight.shape[1])
    for start in range(0, weight.shape[0], height):
        yield weight[start : start + height].detach().contiguous()


def choose_all(
    weight: torch.Tensor, form: Format, path: str, *, clip: bool = False, moments: torch.Tensor | None = None
) -> Side:
    """(scales, zeros) [out, groups] of a whole weight."""
    found = [
        choose_scales(_grouped(rows, form), form, path, clip=clip, moments=moments) for rows in blocks_of_rows(weight)
    ]
    zeros = [zeros for _, zeros in found if zeros is not None]
    return torch.cat([scales for scales, _ in found]), torch.cat(zeros) if zeros else None


def choose_scales(
    values: torch.Tensor, form: Format, path: str, *, clip: bool = False, moments: torch.Tensor | None = None
) -> Side:
    """(scales, zeros) [rows, groups] of fp64 values [rows, groups, group]; see `round_to_nearest`."""
    ends = _ends(values, form)
    _check_reach(ends, form, path)
    best = _span(ends, form, 1.0)
    if not clip:
        return best
    least = _squared(values, best, form, moments)
    for ratio in _RATIOS:
        tried = _span(ends, form, ratio)
        error = _squared(values, tried, form, moments)
        better = error < least
        least = torch.where(better, error, least)
        (scales, zeros), (old_scales, old_zeros) = tried, best
        if zeros is not None and old_zeros is not None:
            zeros = torch.where(better, zeros, old_zeros)
        best = (torch.where(better, scales, old_scales), zeros)
    return best


def encode(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, form: Format) -> torch.Tensor:
    """The nearest codes of fp64 values; scales and zeros broadcast over them."""
    low, high = form.range
    steps = values / scales.to(values.dtype)
    if form.name == "fp8":
        return _nearest_e4m3(steps.clamp(low, high)).to(form.code_dtype)
    codes = steps.round() if zeros is None else steps.round() + zeros.to(values.dtype)
    return codes.clamp(low, high).to(form.code_dtype)


def _grouped(rows: torch.Tensor, form: Format) -> torch.Tensor:
    return rows.double().view(len(rows), form.groups(rows.shape[1]), -1)


def _span(ends: Ends, form: Format, ratio: float) -> Side:
    """The least steps, and where zero lies among them, by which `ratio` of each group's reach is covered."""
    low, high = ends
    scales = _stored((high - low) * ratio / form.top, form)
    if form.symmetric:
        return scales, None
    zeros = (low * -ratio / scales.double()).round().clamp(0, form.top)
    return scales, zeros.to(torch.uint8)


def _ends(values: torch.Tensor, form: Format) -> Ends:
    """What a group's codes must reach: from zero to its largest magnitude, or from its least to its greatest value."""
    if form.symmetric:
        high = values.abs().amax(-1)
        return torch.zeros_like(high), high
    return values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)  # zero is always a code: it stays exact


def _squared(values: torch.Tensor, side: Side, form: Format, moments: torch.Tensor | None) -> torch.Tensor:
    """Each group's squared error [rows, groups], of its weights or of what it adds to the output."""
    scales, zeros = side[0].unsqueeze(-1), None if side[1] is None else side[1].unsqueeze(-1)
    error = decode(encode(values, scales, zeros, form), scales, zeros, values.dtype) - values
    if moments is None:
        return error.square().sum(-1)
    weighed = torch.matmul(error.transpose(0, 1), moments.to(error)).transpose(0, 1)
    return (weighed * error).sum(-1)


def _check_reach(ends: Ends, form: Format, path: str) -> None:
    """Refuse steps that the stored dtype cannot hold. Asked once: whatever is clipped needs less."""
    limit, step = torch.finfo(form.scale_dtype).max, float((ends[1] - ends[0]).max()) / form.top
    if step > limit:
        kind = str(form.scale_dtype).removeprefix("torch.")
        problem = f"a step of {step:.3g} is needed, and {form} stores its scales in {kind}, at most {limit:.6g}"
        raise NumericalError(problem, where=path, remedy="keep this weight wide, or take int8 per channel")


def _stored(exact: torch.Tensor, form: Format) -> torch.Tensor:
    """Scales in the dtype in which they are stored: rounded up, and never subnormal (some devices flush those)."""
    wanted = exact.clamp(min=torch.finfo(form.scale_dtype).tiny)
    scales = wanted.float().to(form.scale_dtype)
    bits = torch.int16 if form.scale_dtype == torch.float16 else torch.int32
    above = (scales.view(bits) + 1).view(form.scale_dtype)  # positive floats lie in their bits' order
    return torch.where(scales.double() < wanted, above, scales)


def _nearest_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Values of at most 448 rounded to e4m3's, ties to even; a cast by way of fp32 would round twice."""
    wide = values.double()
    power = (wide.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)  # the power of two below
    step = power.clamp(min=2.0**-6) / 8  # three bits of mantissa; from 2⁻⁶ down the gaps stay
    return (wide / step).round() * step
