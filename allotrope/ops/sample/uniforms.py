"""Philox for torch in a third of the steps: on a GPU a few numbers cost a launch as much as many do.

The four words travel in two tensors whose lines alternate, a c a c … and b d b d …, so that one product
serves both multipliers, and the same lines shifted by one are the products exchanged:

    x   a   c   a   c   …              product   aM₀ cM₁ aM₀ cM₁ …
    y   b   d   b   d   …              from the second line on: what a and c, b and d become

Each round eats a line; twelve last for ten rounds. Words are the low halves of 64-bit integers, so a
product's two halves are views of it, and x is written into low halves beside zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allotrope.ops.philox import KEY_STEPS, LOW, MULTIPLIERS, ROUNDS, UNIFORM_BITS


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """`philox.uniform_bits` / 2^53, as fp64 [rows, 1]."""
    odd = torch.arange(ROUNDS + 2, device=seeds.device)[:, None] & 1
    multipliers = MULTIPLIERS[0] + odd * (MULTIPLIERS[1] - MULTIPLIERS[0])
    steps = KEY_STEPS[0] + odd * (KEY_STEPS[1] - KEY_STEPS[0])
    rounds = torch.arange(ROUNDS, device=seeds.device)[:, None, None]
    keys = _half(torch.where(odd == 0, seeds, seeds >> 32) + rounds * steps, 0)
    x, y = (positions & LOW) * (1 - odd), _half((positions >> 32) * (1 - odd), 0)
    for number in range(ROUNDS):
        product = x * multipliers[: len(x)]
        x = x[:-1]
        torch.bitwise_xor(_half(product[1:], 1) ^ y[:-1], keys[number, : len(x)], out=_half(x, 0))
        y = _half(product[1:], 0)
    bits = x[0] << (UNIFORM_BITS - 32) | (y[0].long() & LOW) >> (64 - UNIFORM_BITS)
    return (bits.double() * 2.0**-UNIFORM_BITS)[:, None]


def _half(words: Tensor, which: int) -> Tensor:
    """The low (0) or high (1) halves of 64-bit integers, as a view."""
    return words.view(torch.int32)[..., which::2]
