"""The filters, top_k, top_p and min_p: weights become 0 for every token that they remove.

Ranked by logit and then by index, what top_k and top_p leave is a beginning. So the ranking is needed only
to find its last token; all others are compared with that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops.sample import weight_bits
from allotrope.ops.sample.sums import Sums

_FEW = 1024  # the likeliest tokens are sought among this many first


def filter_all(logits: Tensor, weights: Tensor, ranked: Tensor, how: Mapping[str, Tensor]) -> None:
    """Remove what the filters remove from `weights`, [rows, vocab], without a look at anything.

    `ranked`, [rows, whole blocks], is scratch memory.
    """
    vocab = logits.shape[1]
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    torch.gather(weights, -1, order, out=ranked[:, :vocab])
    ranked[:, vocab:] = 0
    sums = Sums(ranked)
    top_k = how["top_k"].long()[:, None]
    last = torch.where(top_k > 0, top_k, vocab).clamp_(max=vocab) - 1
    mass = how["top_p"].double()[:, None] * sums.to(last)
    last = torch.minimum(sums.first(mass, above=False), last)
    least, where = values.gather(1, last), order.gather(1, last)
    removed = (logits < least) | ((logits == least) & (torch.arange(vocab, device=logits.device) > where))
    removed |= weights < how["min_p"].double()[:, None] * 2.0 ** weight_bits(vocab)
    weights.masked_fill_(removed, 0.0)


def filter_each(logits: Tensor, weights: Tensor, how: Mapping[str, Tensor]) -> None:
    """The same row by row, sorting no more than must be: a CPU sorts a whole vocabulary in tens of milliseconds."""
    for i, row in enumerate(logits):
        top_k, top_p, min_p = int(how["top_k"][i]), float(how["top_p"][i]), float(how["min_p"][i])
        mine = weights[i]
        total = float(mine.sum())
        if math.isnan(total):  # a row without a maximum
            continue
        if top_k or top_p < 1:
            order = _ranked(row, mine, top_k, top_p * total)
            order = order[:top_k] if top_k else order
            found = mine[order]
            enough = found.cumsum(0) - found < top_p * (float(found.sum()) if top_k else total)
            enough[0] = True
            order = order[enough]
            kept = mine[order]
            mine.zero_().index_copy_(0, order, kept)
        if min_p > 0:
            mine[mine < min_p * 2.0 ** weight_bits(len(mine))] = 0


def _ranked(row: Tensor, weights: Tensor, top_k: int, mass: float) -> Tensor:
    """Tokens by rank: the `top_k` likeliest or, without `top_k`, the likeliest that make up `mass`; maybe more."""
    count, most = min(top_k or _FEW, len(row)), len(row)
    found = torch.arange(most)
    while count < most:
        least = row.topk(count, sorted=False).values.min()
        likely = (row >= least).nonzero()[:, 0]  # with all that equal the last
        if top_k or float(weights[likely].sum()) >= mass:
            found = likely
            break
        count = min(8 * count, most)
    return found[row[found].sort(descending=True, stable=True).indices]
