"""How far apart two sides' distributions over the next token are, on the same text: token by token, and in sum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from allotrope.eval import paired
from allotrope.eval.paired import Floats

BLOCK = 128  # tokens that are drawn together for an interval: neighbours depend on one another
_ROWS = 256  # at a time: a vocabulary of 150,000 in fp64 is 300 MB


@dataclass(frozen=True)
class Tokens:
    """For each scored token, in nats: what it costs either side, and the KL of the original's distribution to the
    engine's; whether the likeliest token is the same; by how much its own probability changed."""

    nll: Floats
    original_nll: Floats
    kl: Floats
    same: Floats
    change: Floats

    def __len__(self) -> int:
        return len(self.nll)


def compared(ours: torch.Tensor, theirs: torch.Tensor, targets: Sequence[int]) -> Tokens:
    """Of logits `[len(targets), vocab]` on either side."""
    parts: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for start in range(0, len(targets), _ROWS):
        p = theirs[start : start + _ROWS].double().log_softmax(-1)
        q = ours[start : start + _ROWS].to(p.device).double().log_softmax(-1)
        right = torch.tensor(targets[start : start + _ROWS], device=p.device)[:, None]
        mine, other = q.gather(-1, right)[:, 0], p.gather(-1, right)[:, 0]
        kl = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0.0).sum(-1).clamp(min=0)
        found = (-mine, -other, kl, (p.argmax(-1) == q.argmax(-1)).double(), mine.exp() - other.exp())
        for part, values in zip(parts, found, strict=True):
            part.append(values.cpu())
    return Tokens(*(torch.cat(part).numpy() for part in parts))


def joined(parts: Iterable[Tokens]) -> Tokens:
    """One after the other."""
    listed = list(parts)
    names = ("nll", "original_nll", "kl", "same", "change")
    return Tokens(*(np.concatenate([getattr(part, name) for part in listed]) for name in names))


def figures(tokens: Tokens, seed: int) -> dict[str, Any]:
    """The sums that are shown. Intervals are of blocks of neighbouring tokens, drawn anew."""
    nll, original = float(tokens.nll.mean()), float(tokens.original_nll.mean())
    starts, sizes = _blocks(len(tokens))
    with np.errstate(invalid="ignore"):  # a token that is impossible to both
        gains = np.add.reduceat(tokens.nll - tokens.original_nll, starts) / sizes
    own = np.add.reduceat(tokens.nll, starts) / sizes
    return {
        "perplexity": _exp(nll),
        "perplexity_interval": [_exp(end) for end in paired.interval(own, sizes, seed=seed)],
        "nll_per_token": nll,
        "original_perplexity": _exp(original),
        "original_nll_per_token": original,
        "perplexity_ratio": _exp(nll - original),
        "perplexity_ratio_interval": [_exp(end) for end in paired.interval(gains, sizes, seed=seed)],
        "kl": {
            "mean": float(tokens.kl.mean()),
            "median": float(np.median(tokens.kl)),
            "p99": _quantile(tokens.kl, 0.99),
            "max": float(tokens.kl.max()),
        },
        "same_top1": float(tokens.same.mean()),
        "probability_change": {
            "mean": float(tokens.change.mean()),
            "rms": math.sqrt(float((tokens.change**2).mean())),
        },
    }


def samples(tokens: Tokens) -> list[dict[str, float]]:
    """The raw figures by block, in the text's order."""
    starts, sizes = _blocks(len(tokens))
    columns = {
        name: np.add.reduceat(getattr(tokens, name), starts) / sizes for name in ("nll", "original_nll", "kl", "same")
    }
    return [
        {"tokens": int(size), **{name: float(values[i]) for name, values in columns.items()}}
        for i, size in enumerate(sizes)
    ]


def _quantile(values: Floats, share: float) -> float:
    """Linear between neighbours; of two infinite ones infinite."""
    with np.errstate(invalid="ignore"):
        found = float(np.quantile(values, share))
    return float(values.max()) if math.isnan(found) else found


def _blocks(count: int) -> tuple[Any, Any]:
    starts = np.arange(0, count, BLOCK)
    return starts, np.diff([*starts, count])


def _exp(value: float) -> float:
    """A perplexity; beyond what a float holds it is infinite."""
    return math.exp(value) if value < 709 else math.inf if value > 0 else math.nan
