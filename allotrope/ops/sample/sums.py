"""Exact sums over a vocabulary: weights are integers in fp64, so the order in which they are added does not matter."""

from __future__ import annotations

import torch
from torch import Tensor

from allotrope.ops.sample import weight_bits

BLOCK = 512
SMALL = 1024  # vocabularies up to this size are treated on a CPU as on a GPU: all rows at once
PORTION = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Logits that are worked on together: on a CPU what fits its caches, on a GPU what fills it."""


def padded(vocab: int) -> int:
    """The vocabulary's size in whole blocks."""
    return -(-vocab // BLOCK) * BLOCK


def rows_at_once(kind: str, vocab: int) -> int:
    """How many rows make a portion on this kind of device."""
    return max(1, PORTION[kind] // padded(vocab))


def weigh(scaled: Tensor) -> Tensor:
    """Weights in place of scaled logits, whose largest is 0."""
    return scaled.exp_().mul_(2.0 ** weight_bits(scaled.shape[1])).round_()


def log_mass(logits: Tensor, peak: Tensor, scratch: Tensor | None = None) -> Tensor:
    """log Σ exp(logit − peak) of each row, [rows, 1] in fp64, by a way that is the same however many rows there are."""
    if logits.device.type != "cpu" or logits.shape[1] <= SMALL:
        below = torch.sub(logits, peak, out=scratch) if scratch is not None else logits - peak
        return (weigh(below).sum(-1, keepdim=True) * 2.0 ** -weight_bits(logits.shape[1])).log_()
    # Row by row, torch splits each sum alike. exp in fp32 is eight times faster and as exact as the result.
    row = torch.empty(logits.shape[1])
    sums = [
        torch.sub(mine, float(top), out=row).exp_().sum(dtype=torch.float64)
        for mine, top in zip(logits.float(), peak[:, 0].tolist(), strict=True)
    ]
    return torch.stack(sums)[:, None].log_()


class Sums:
    """Running sums over each row of `weights`, [rows, whole blocks], without making them all.

    A search goes to the right block first and then looks into that alone.
    """

    def __init__(self, weights: Tensor) -> None:
        self._blocks = weights.view(len(weights), -1, BLOCK)
        self._sums = self._blocks.sum(-1)
        self._ends = self._sums.cumsum(-1)

    @property
    def total(self) -> Tensor:
        """Of each row, [rows, 1]."""
        return self._ends[:, -1:]

    def to(self, index: Tensor) -> Tensor:
        """The sum up to and with the element at `index`, [rows, 1] both."""
        return self._inside(index // BLOCK).gather(1, index % BLOCK)

    def first(self, target: Tensor, *, above: bool) -> Tensor:
        """The first index whose running sum is above `target`, or else reaches it; any index where none does."""
        block = torch.searchsorted(self._ends, target, right=above).clamp_(max=self._ends.shape[1] - 1)
        inside = torch.searchsorted(self._inside(block), target, right=above)
        return block * BLOCK + inside.clamp_(max=BLOCK - 1)

    def _inside(self, block: Tensor) -> Tensor:
        """The running sums over one block of each row, [rows, BLOCK]."""
        mine = self._blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
        return mine.cumsum(-1) + (self._ends - self._sums).gather(1, block)
