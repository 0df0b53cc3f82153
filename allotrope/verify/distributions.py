"""Logits and tokens: how far apart the distributions are, and whether they ever say something else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from allotrope.ops import check
from allotrope.verify.prompts import Prompt
from allotrope.verify.records import Divergence, Logits, Tokens

_ROWS = 256  # at a time: a vocabulary of 150,000 in fp64 is 300 MB
_PERCENTILES = (50, 90, 95, 99)


def compare_logits(
    engine: torch.Tensor, truth: torch.Tensor, same: torch.Tensor, sequences: Sequence[Sequence[int]]
) -> Logits:
    """All positions of all sequences, teacher-forced; `same` is the original in the engine's dtype."""
    following = torch.full((len(truth),), -1, dtype=torch.int64)
    start = 0
    for ids in sequences:
        following[start : start + len(ids) - 1] = torch.tensor(list(ids[1:]), dtype=torch.int64)
        start += len(ids)
    ours, floor = _figures(engine, truth, following), _figures(same, truth, following)
    kl = ours["kl"]
    return Logits(
        positions=len(truth),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        same_top1=float(ours["same"].mean()),
        max_logprob_change=float(ours["change"].max()),
        perplexity=_perplexity(ours["nll"]),
        original_perplexity=_perplexity(ours["true_nll"]),
        kl_percentiles={f"{p}": float(kl.quantile(p / 100)) for p in _PERCENTILES},
        floor={
            "mean_kl": float(floor["kl"].mean()),
            "max_kl": float(floor["kl"].max()),
            "same_top1": float(floor["same"].mean()),
            "max_logprob_change": float(floor["change"].max()),
        },
    )


def _figures(other: torch.Tensor, truth: torch.Tensor, following: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per position: KL(truth‖other), whether the likeliest token is the same, the largest change, both NLLs."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("kl", "same", "change", "nll", "true_nll")}
    for start in range(0, len(truth), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(truth)))
        p = truth[rows.to(truth.device)].double().log_softmax(-1)
        q = other[rows.to(other.device)].to(p.device).double().log_softmax(-1)
        parts["kl"].append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu())
        parts["same"].append((p.argmax(-1) == q.argmax(-1)).double().cpu())
        parts["change"].append((p - q).abs().amax(-1).cpu())
        known = following[rows] >= 0
        target = following[rows].clamp(min=0)[:, None].to(p.device)
        parts["nll"].append(-q.gather(-1, target)[:, 0].cpu()[known])
        parts["true_nll"].append(-p.gather(-1, target)[:, 0].cpu()[known])
    return {name: torch.cat(found) for name, found in parts.items()}


def mean_kl(other: torch.Tensor, truth: torch.Tensor) -> float:
    """KL(truth‖other), the mean over all rows."""
    return float(kl_by_position(other, truth).mean())


def kl_by_position(other: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """KL(truth‖other), row by row."""
    return _figures(other, truth, torch.full((len(truth),), -1, dtype=torch.int64))["kl"]


def _perplexity(nll: torch.Tensor) -> float:
    """1 where there is nothing to predict."""
    return math.exp(min(float(nll.mean()), 700.0)) if len(nll) else 1.0


def compare_tokens(
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[int]],
    truths: Sequence[torch.Tensor],
    sames: Sequence[torch.Tensor],
    precision: str,
) -> Tokens:
    """Judge each greedy token by the original's logits at its place, given the engine's text so far.

    `truths[i]` and `sames[i]` are the original's logits `[len(texts[i]), vocab]` in the finer precision
    and in the engine's dtype.
    """
    found = list[Divergence]()
    exact = 0
    for prompt, text, truth, same in zip(prompts, texts, truths, sames, strict=True):
        differing = list(_divergences(prompt, text, truth, same, precision))
        exact += not differing
        found += differing
    total = sum(len(text) for text in texts)
    return Tokens(total, total - len(found), exact, len(prompts), tuple(found))


def _divergences(
    prompt: Prompt, text: Sequence[int], truth: torch.Tensor, same: torch.Tensor, precision: str
) -> Iterator[Divergence]:
    for place, token in enumerate(text):
        row = truth[place].double()
        best = int(row.argmax())
        if token == best:
            continue
        known = 0 <= token < len(row)
        margin = float(row[best] - row[token]) if known else math.inf
        yield Divergence(
            prompt=prompt.name,
            position=len(prompt.ids) + place,
            engine=token,
            original=best,
            margin=margin,
            floor=check.compare(same[place], row).max_abs,
            explained=known and check.choice_within(margin, same[place], row, precision),
        )
