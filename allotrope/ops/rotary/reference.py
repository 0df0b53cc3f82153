"""The plain rotation, and the frequencies that the tactics share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Array, Problem, Scalar

_POWERS = 31  # prompt lengths are int32


def exponents(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[dim / 2]: channel pair i turns with the base to the power of minus this."""
    return torch.arange(0, dim, 2, device=device).to(dtype) / dim


def growth(positions: Tensor, prompt_lens: Tensor, params: Mapping[str, Scalar]) -> Tensor:
    """[rows], fp64: what multiplies the base, before the exponent dim / (dim − 2), under a scaling that follows length.

    Computed with tensors only, so that a graph can capture it.
    """
    length = int(params["original_len"])
    if params["scaling"] == "dynamic":
        factor = float(params["factor"])
        reached = torch.maximum(prompt_lens, positions + 1).clamp(min=length)
        return factor * reached.double() / length - (factor - 1)
    # in integers: floating-point logarithms go wrong at lengths that are an exact multiple
    times = (prompt_lens + length - 1) // length
    powers = 2 ** torch.arange(_POWERS, device=positions.device)
    doublings = (times[:, None] > powers).sum(-1)
    return (2 * 2**doublings - 1).double()


def fixed_frequencies(params: Mapping[str, Scalar], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[dim / 2] for the scalings that do not follow the length, by the steps (and so the bits) of transformers."""
    factor, scaling = float(params["factor"]), params["scaling"]
    plain = 1.0 / float(params["base"]) ** exponents(int(params["dim"]), dtype, device)
    if scaling == "linear":
        return plain / factor
    if scaling != "llama3":
        return plain
    length, low, high = (float(params[name]) for name in ("original_len", "low_freq", "high_freq"))
    wavelength = 2 * math.pi / plain
    slow = torch.where(wavelength > length / low, plain / factor, plain)
    blend = (length / wavelength - low) / (high - low)
    between = ~(wavelength < length / high) & ~(wavelength > length / low)
    return torch.where(between, (1 - blend) * slow / factor + blend * slow, slow)


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """x · cos + rotate_half(x) · sin, with cos and sin rounded to x's dtype first."""
    x, dim = ins["x"], int(params["dim"])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequencies = fixed_frequencies(params, wide, x.device)
    if params["scaling"] in ("dynamic", "qwen_ntk"):
        grown = float(params["base"]) * growth(ins["positions"], ins["prompt_lens"], params) ** (dim / (dim - 2))
        frequencies = 1.0 / grown.to(wide)[:, None] ** exponents(dim, wide, x.device)
    angles = ins["positions"].to(wide)[:, None] * frequencies
    cos, sin = (torch.cat([turn, turn], -1).to(x.dtype)[:, None] for turn in (angles.cos(), angles.sin()))
    parts = x.view(len(x), int(params["heads"]), int(params["head_dim"]))
    turned, rest = parts[..., :dim], parts[..., dim:]
    half = torch.cat([-turned[..., dim // 2 :], turned[..., : dim // 2]], -1)
    return {"out": torch.cat([turned * cos + half * sin, rest], -1).flatten(-2)}


def make_inputs(problem: Problem, seed: int) -> dict[str, Array]:
    """Positions and prompt lengths within the training length and far beyond, with the steps' exact edges."""
    random, rows = inputs.generator(seed), problem.axes["rows"]
    length = int(problem.params.get("original_len", 0)) or 1024
    edges = torch.tensor([1, length - 1, length, length + 1, 2 * length, 2 * length + 1, 4 * length, 4 * length + 1])
    drawn = torch.randint(1, 5 * length, (rows,), generator=random)
    chosen = edges[torch.randint(len(edges), (rows,), generator=random)]
    prompt_lens = torch.where(torch.rand(rows, generator=random) < 0.5, chosen, drawn).clamp(min=1)
    return {
        "x": inputs.activations(random, rows, problem.axes["width"]),
        "positions": inputs.indices(random, rows, 4 * length),
        "prompt_lens": prompt_lens,
        "memo": {},
    }
