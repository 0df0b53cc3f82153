"""The plain version: the contract's definition, one row at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.philox import UNIFORM_BITS, uniform_bits
from allotrope.ops.sample import weight_bits


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """Computes in fp64 whatever the dtype; the log-probability is rounded to fp32 unless the logits are fp64."""
    rows = ins["rows"].tolist()
    tokens = torch.zeros(len(rows), 1, dtype=torch.int64, device=ins["rows"].device)
    logprobs = torch.full((len(rows), 1), torch.nan, dtype=torch.float64, device=tokens.device)
    uniforms = uniform_bits(ins["seeds"], ins["sample_positions"]).double() / 2**UNIFORM_BITS
    for i, row in enumerate(rows):
        logits = ins["logits"][row].double()
        top = logits.max()
        if not top.isfinite():
            continue
        temperature, token = float(ins["temperature"][i]), int((logits == top).nonzero()[0, 0])
        if temperature > 0:
            scaled = (logits - top) / temperature
            weights = (scaled.exp() * 2.0 ** weight_bits(len(scaled))).round()
            kept = _kept(scaled, weights, int(ins["top_k"][i]), float(ins["top_p"][i]), float(ins["min_p"][i]))
            ends = torch.where(kept, weights, 0.0).cumsum(0)
            unit = min(math.floor(float(uniforms[i]) * float(ends[-1])), float(ends[-1]) - 1)
            token = int((ends > unit).nonzero()[0, 0])
        tokens[i], logprobs[i] = token, logits[token] - torch.logsumexp(logits, 0)
    return {"tokens": tokens, "logprobs": logprobs if ins["logits"].dtype == torch.float64 else logprobs.float()}


def _kept(scaled: Tensor, weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens the filters leave."""
    order = scaled.sort(descending=True, stable=True).indices
    order = order[:top_k] if top_k else order
    before = weights[order].cumsum(0) - weights[order]
    enough = before < top_p * weights[order].sum()
    enough[0] = True
    order = order[enough & (weights[order] >= min_p * weights.max())]
    return torch.zeros_like(weights, dtype=torch.bool).index_fill_(0, order, True)


def make_inputs(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Every mixture of filters and temperatures; ties; one row of logits without a maximum if there are several."""
    random, axes = inputs.generator(seed), problem.axes
    rows, count, vocab = axes["rows"], axes["logits"], axes["vocab"]
    logits = inputs.normal(random, count, vocab, scale=2.5)
    logits[:, torch.randint(vocab, (4,), generator=random)] = logits.amax(-1, keepdim=True)
    if count > 3:
        logits[count // 2, vocab // 2] = torch.nan

    def any_of(*choices: float) -> Tensor:
        return torch.tensor(choices)[torch.randint(len(choices), (rows,), generator=random)]

    return {
        "logits": logits,
        "rows": torch.randint(count, (rows,), generator=random),
        "temperature": any_of(0.0, 0.5, 1.0, 1.7),
        "top_k": any_of(0, 0, 1, 7, 50, vocab).int(),
        "top_p": any_of(1.0, 0.95, 0.5, 0.01),
        "min_p": any_of(0.0, 0.0, 0.02, 1.0),
        "seeds": torch.randint(-(2**62), 2**62, (rows,), generator=random),
        "sample_positions": torch.randint(2**20, (rows,), generator=random),
    }
