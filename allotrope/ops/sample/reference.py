"""The plain version: the contract's definition, one row at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from allotrope.ops import inputs
from allotrope.ops.check import RowCase
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.philox import UNIFORM_BITS, uniform_bits
from allotrope.ops.sample import ADJUSTMENTS, CONTRACT, weight_bits


def reference(ins: Mapping[str, Tensor], params: Mapping[str, Scalar]) -> dict[str, Tensor]:
    """Computes in fp64 whatever the dtype; the log-probability is rounded to fp32 unless the logits are fp64."""
    rows = ins["rows"].tolist()
    tokens = torch.zeros(len(rows), 1, dtype=torch.int64, device=ins["rows"].device)
    logprobs = torch.full((len(rows), 1), torch.nan, dtype=torch.float64, device=tokens.device)
    uniforms = uniform_bits(ins["seeds"], ins["sample_positions"]).double() / 2**UNIFORM_BITS
    for i, row in enumerate(rows):
        raw = ins["logits"][row].double()
        logits = _adjusted(raw, ins, i)
        top = logits.max()
        if not (top.isfinite() and raw.max().isfinite()):
            continue
        temperature, token = float(ins["temperature"][i]), int((logits == top).nonzero()[0, 0])
        if temperature > 0:
            weights = (((logits - top) / temperature).exp() * 2.0 ** weight_bits(len(logits))).round()
            kept = _kept(logits, weights, int(ins["top_k"][i]), float(ins["top_p"][i]), float(ins["min_p"][i]))
            ends = torch.where(kept, weights, 0.0).cumsum(0)
            unit = min(math.floor(float(uniforms[i]) * float(ends[-1])), float(ends[-1]) - 1)
            token = int((ends > unit).nonzero()[0, 0])
        tokens[i], logprobs[i] = token, raw[token] - torch.logsumexp(raw, 0)
    return {"tokens": tokens, "logprobs": logprobs if ins["logits"].dtype == torch.float64 else logprobs.float()}


def _adjusted(raw: Tensor, ins: Mapping[str, Tensor], row: int) -> Tensor:
    """The row's logits after its own entries."""
    if "adjust_rows" not in ins:
        return raw
    mine = ins["adjust_rows"] == row
    tokens, divide, add = (ins[name][mine] for name in ADJUSTMENTS[1:])
    before = raw[tokens]
    after = torch.where(before > 0, before / divide.double(), before * divide.double()) + add.double()
    return raw.index_copy(0, tokens, after.float().double())


def _kept(logits: Tensor, weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens the filters leave."""
    order = logits.sort(descending=True, stable=True).indices
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

    ins = {
        "logits": logits,
        "rows": torch.randint(count, (rows,), generator=random),
        "temperature": any_of(0.0, 0.5, 1.0, 1.7),
        "top_k": any_of(0, 0, 1, 7, 50, vocab).int(),
        "top_p": any_of(1.0, 0.95, 0.5, 0.01),
        "min_p": any_of(0.0, 0.0, 0.02, 1.0),
        "seeds": torch.randint(-(2**62), 2**62, (rows,), generator=random),
        "sample_positions": torch.randint(2**20, (rows,), generator=random),
    }
    if "adjust_rows" in problem.present:
        ins |= _adjustments(logits[ins["rows"]], axes.get("adjustments", 0), random)
    return ins


def _adjustments(logits: Tensor, count: int, random: torch.Generator) -> dict[str, Tensor]:
    """Entries for likely tokens and for any; some forbid theirs, and some are nothing."""
    rows, vocab = logits.shape
    likely = torch.arange(rows)[:, None] * vocab + logits.topk(min(3, vocab)).indices
    others = torch.randint(rows * vocab, (count,), generator=random)
    places = torch.unique(torch.cat([likely.flatten(), others]))
    places = places[torch.randperm(len(places), generator=random)[:count]]
    some = torch.rand(count, generator=random)
    values = {
        "adjust_rows": torch.full((count,), -1),
        "adjust_tokens": torch.randint(vocab, (count,), generator=random),
        "adjust_divide": torch.where(some < 0.5, 1.0, 1 + torch.rand(count, generator=random)),
        "adjust_add": torch.where(some > 0.9, -torch.inf, 3 * torch.randn(count, generator=random)),
    }
    values["adjust_rows"][: len(places)] = places // vocab
    values["adjust_tokens"][: len(places)] = places % vocab
    values["adjust_rows"][some < 0.05] = -1
    return values


def row_cases(problem: Problem, seed: int, counts: Sequence[int]) -> list[RowCase]:
    """Four rows alone and among others, at other places each time; a row's adjustments go where it goes."""
    random, largest = inputs.generator(seed), max(counts)
    most = {**problem.axes, "rows": largest, "adjustments": largest}
    ins = make_inputs(dataclasses.replace(problem, axes=most), seed)
    by_row = [name for name in ins if CONTRACT.ins[name].axes == ("rows",)]

    def case(order: Tensor, probes: Mapping[int, int]) -> RowCase:
        batch = ins | {name: ins[name][order].clone() for name in by_row}
        axes = {**problem.axes, "rows": len(order)}
        if "adjust_rows" in ins:
            places, entries = (order[:, None] == ins["adjust_rows"]).nonzero(as_tuple=True)
            shuffled = torch.randperm(len(places), generator=random)
            batch |= {name: ins[name][entries[shuffled]] for name in ADJUSTMENTS[1:]}
            batch["adjust_rows"], axes["adjustments"] = places[shuffled], len(places)
        return RowCase(dataclasses.replace(problem, axes=axes), batch, probes)

    watched = torch.randperm(largest, generator=random)[:4]
    cases = [case(watched[probe : probe + 1], {probe: 0}) for probe in range(len(watched))]
    for count in counts[1:]:
        for _ in range(3):
            places = torch.randperm(count, generator=random)[:4]
            order = torch.randint(largest, (count,), generator=random)
            order[places] = watched
            cases.append(case(order, dict(enumerate(places.tolist()))))
    return cases
