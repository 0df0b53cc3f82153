"""What lets a model stand rounding: weights that may be a little off, and attention logits that stay small.

Nothing in a loss asks for either. Weights of exact arithmetic come to hang on their last digits: a network without
biases makes its constants by products with a large mean of its activations, and each such product is off by as much as
the mean is large. And Muon moves every direction of a query's or key's matrix alike, so logits grow far beyond what
softmax can tell apart. Both are mended where they arise, in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from tools.train.evaluation import quantised

LIMIT_EVERY = 8  # steps; at the highest rate logits grow by a percent or two in one


def shaken(model: nn.Module, share: float, random: torch.Generator) -> AbstractContextManager[Any]:
    """Inside, every matrix of the blocks is off by noise; a gradient taken there leads to where noise matters less."""
    return quantised.rounded(model, partial(off, share=share, random=random)) if share else nullcontext()


def off(weight: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """[out, in] with an even draw from what rounding to `share` of int4's step may do, in its groups."""
    groups = quantised.grouped(weight) if weight.shape[-1] % quantised.GROUP == 0 else weight
    step = groups.abs().amax(-1, keepdim=True) / 7
    draw = torch.rand(groups.shape, generator=random, device=groups.device) - 0.5
    return (groups + share * step * draw).view_as(weight)


@torch.no_grad()
def limit_logits(model: Any, ids: torch.Tensor, limit: float) -> None:
    """Make queries and keys of a head smaller, both alike, if its logits lie further apart than `limit` for a token.

    QK-clip (Kimi K2, 2025), but by the distance of a token's largest logit from its least: what all logits of a token
    have in common does nothing under softmax. `ids` are [rows, tokens]; the model is one of the OPT family.
    """
    with _projected(model) as found:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    for attention, queries, keys in found:
        apart = spreads(queries * attention.scaling, keys, attention.num_heads)
        smaller = (limit / apart).clamp(max=1).sqrt().repeat_interleave(attention.head_dim)
        for part in (attention.q_proj, attention.k_proj):
            for parameter in part.parameters():  # each row of the matrix, and of a bias, is one output of a head
                parameter.mul_(smaller.view(-1, *[1] * (parameter.ndim - 1)))


def spreads(queries: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """For each head the largest distance between two causal logits of one token; inputs are [rows, tokens, width]."""
    q, k = (part.float().view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (queries, keys))
    logits = q @ k.mT
    later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    high = logits.masked_fill(later, -torch.inf).amax(-1)
    low = logits.masked_fill(later, torch.inf).amin(-1)
    apart: torch.Tensor = (high - low).amax((0, 2))
    return apart


Projected = list[tuple[Any, torch.Tensor, torch.Tensor]]


@contextmanager
def _projected(model: Any) -> Iterator[Projected]:
    """Inside, calls of the model append each attention with its queries (not yet scaled) and keys."""
    found: Projected = []
    made: dict[int, torch.Tensor] = {}

    def hold(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        made[id(module)] = output

    def join(module: Any, *_: Any) -> None:
        found.append((module, made.pop(id(module.q_proj)), made.pop(id(module.k_proj))))

    hooks = []
    for layer in model.model.decoder.layers:
        attention = layer.self_attn
        hooks += [part.register_forward_hook(hold) for part in (attention.q_proj, attention.k_proj)]
        hooks.append(attention.register_forward_hook(join))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
