"""AWQ: make the weights of loud channels larger before they are rounded, and the channels quieter by as much.

A weight's rounding error is a share of its group's step, so a column multiplied by s keeps 1/s of its error, as long as
it does not become its group's largest. With s = (mean |x|)^a, the exponent a is searched by the output's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from allotrope.quant.formats import Format, Quantised, dequantise
from allotrope.quant.rounding import round_to_nearest
from allotrope.quant.shared import Shared, tidy

_EXPONENTS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True, eq=False)
class Awq:
    """What was found. `weights` stand for weight · scales; the op before is to give its output divided by `scales`.

    Errors are the outputs' on the sample, relative to them in RMS: `plain` is rounding to nearest's.
    """

    scales: torch.Tensor
    exponent: float
    weights: Mapping[str, Quantised]
    error: float
    plain: float


def awq(shared: Shared, form: Format, *, clip: bool = False) -> Awq:
    """Scales for linears that read the same input, and their weights rounded with them.

    The exponents tried include 0, which is rounding to nearest. `clip` then searches each group's clipping ratio by the
    error of its output, and keeps it for the weights whose whole output it brings nearer.
    """
    loudness = shared.inputs.abs().double().mean(0)
    tried: dict[float, float] = {}
    for exponent in _EXPONENTS:

        def outputs(path: str, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return _product(inputs, round_to_nearest(weight, form, path))

        tried[exponent] = shared.error(_scales(loudness, exponent), outputs)
    best = min(tried, key=lambda exponent: tried[exponent])
    scales = _scales(loudness, best)
    inputs, kept = shared.inputs.float() / scales, {}
    moments = _moments(inputs, form) if clip else None
    for path, weight in shared.weights.items():
        scaled = weight.float() * scales
        kept[path] = round_to_nearest(scaled, form, path)
        if clip:
            clipped = round_to_nearest(scaled, form, path, clip=True, moments=moments)
            exact = inputs @ scaled.T
            far, farther = (float((_product(inputs, q) - exact).square().sum()) for q in (clipped, kept[path]))
            kept[path] = clipped if far < farther else kept[path]
    error = shared.error(scales, lambda path, inputs, _: _product(inputs, kept[path]))
    return Awq(scales, best, kept, error, tried[0.0])


def _scales(loudness: torch.Tensor, exponent: float) -> torch.Tensor:
    return tidy(torch.where(loudness > 0, loudness**exponent, 0.0))


def _product(inputs: torch.Tensor, weight: Quantised) -> torch.Tensor:
    return inputs @ dequantise(weight, torch.float32).T


def _moments(inputs: torch.Tensor, form: Format) -> torch.Tensor:
    """[groups, group, group]: Σ x·xᵀ of each group's channels."""
    grouped = inputs.double().view(len(inputs), form.groups(inputs.shape[1]), -1).transpose(0, 1)
    return grouped.transpose(1, 2) @ grouped
