"""Log-probabilities of given tokens, and the likeliest tokens: what is reported beside a drawn token.

A row's values have the same bits whatever stands beside it, and a token's value is the same whether it was
drawn, given or among the likeliest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.ops.sample.sums import log_mass, rows_at_once

_INDEX = (1 << 32) - 1


@dataclass(frozen=True)
class Scores:
    """Of some rows. Log-probabilities are those of the raw logits, in fp32; NaN in rows without a finite maximum."""

    given: Tensor  # [rows] the given tokens'
    likeliest: Tensor  # [rows, count] tokens, best first; equal ones by index
    values: Tensor  # [rows, count] theirs


def score(logits: Tensor, rows: Tensor, given: Tensor, count: int) -> Scores:
    """Score one given token for each of `rows` of the logits, and find its `count` likeliest."""
    found = []
    portion = rows_at_once(logits.device.type, logits.shape[1])
    for start in range(0, len(rows), portion):
        some = slice(start, start + portion)
        picked = logits.index_select(0, rows[some])
        likeliest = _likeliest(picked, min(count, logits.shape[1]))
        peak = picked.amax(-1, keepdim=True).double()
        tokens = torch.cat([given[some, None], likeliest], 1)
        values = (picked.gather(1, tokens).double() - peak - log_mass(picked, peak)).float()
        found.append((values[:, 0], likeliest, values[:, 1:]))
    return Scores(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """The tokens of the largest logits. No two have the same key, so no choice is left to the library."""
    if not count:
        return torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
    bits = (logits.float() + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, in the order of the numbers
    last = logits.shape[1] - 1
    keys = (ordered.long() << 32) | (last - torch.arange(logits.shape[1], device=logits.device))
    return last - (keys.topk(count).values & _INDEX)
