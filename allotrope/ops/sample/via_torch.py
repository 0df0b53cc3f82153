"""Sampling with torch: portions of rows at a time; nothing is asked of a device that one would have to wait for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.philox import UNIFORM_BITS, uniform_bits
from allotrope.ops.sample import weight_bits

# Logits that are worked on together: on a CPU what fits its caches, on a GPU what fills it.
_PORTION = {"cpu": 1 << 16, "cuda": 1 << 24}
_PARAMETERS = ("temperature", "top_k", "top_p", "min_p", "seeds", "sample_positions")
_FEW = 1024  # on a CPU the likeliest tokens are sought among this many first


def _rows_at_once(kind: str, vocab: int) -> int:
    return max(1, _PORTION[kind] // vocab)


def _scratch(problem: Problem, device: Device) -> int:
    vocab = problem.axes["vocab"]
    return 8 * vocab * min(problem.axes["rows"], _rows_at_once(device.kind, vocab))


def _refuses(problem: Problem, device: Device) -> str | None:
    return None if device.kind in _PORTION else f"torch runs here on cpu and cuda, not on {device.kind}"


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    logits, rows = ins["logits"], ins["rows"]
    vocab = logits.shape[1]
    portion = _rows_at_once(logits.device.type, vocab)
    if workspace is None:
        raise ValueError("sampling needs its workspace")
    scratch = workspace[: 8 * vocab * min(len(rows), portion)].view(torch.float64).view(-1, vocab)
    for start in range(0, len(rows), portion):
        some = slice(start, start + portion)
        how = {name: ins[name][some] for name in _PARAMETERS}
        tokens, logprobs = _sample(logits.index_select(0, rows[some]), how, scratch)
        out["tokens"][some], out["logprobs"][some] = tokens, logprobs


def _sample(logits: Tensor, how: Mapping[str, Tensor], scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities, both [rows, 1]."""
    tokens = logits.argmax(-1, keepdim=True)  # the first of equals; NaN counts as largest
    top = logits.gather(-1, tokens).double()
    valid = top.isfinite()
    temperature = how["temperature"].double()[:, None]
    # On a CPU a look at the parameters is free and may save the work; the tokens are the same either way.
    if logits.device.type != "cpu" or bool((temperature > 0).any()):
        below = torch.sub(logits, top, out=scratch[: len(logits)])  # the maximum is 0
        drawn = _draw(below / torch.where(temperature > 0, temperature, 1.0), how)
        tokens = torch.where((temperature > 0) & valid, drawn, tokens)
    tokens = torch.where(valid, tokens, 0)
    chosen = logits.gather(-1, tokens).double() - top
    logprobs = chosen - _mass(logits, top, scratch).log()
    return tokens, torch.where(valid, logprobs, torch.nan)


def _mass(logits: Tensor, top: Tensor, scratch: Tensor) -> Tensor:
    """The sum of exp(logit - top) per row, by a way that is the same however many rows there are."""
    if logits.device.type != "cpu":
        below = torch.sub(logits, top, out=scratch[: len(logits)])
        return _weigh(below).sum(-1, keepdim=True) * 2.0 ** -weight_bits(logits.shape[1])
    # Row by row, torch splits each alike. exp in fp32 is eight times faster and as exact as the result.
    row = scratch.view(torch.float32)[0, : logits.shape[1]]
    sums = [
        torch.sub(mine, float(peak), out=row).exp_().sum(dtype=torch.float64)
        for mine, peak in zip(logits.float(), top[:, 0].tolist(), strict=True)
    ]
    return torch.stack(sums)[:, None]


def _weigh(scaled: Tensor) -> Tensor:
    """Weights in place of scaled logits: integers in fp64, whose sums are exact in any order."""
    return scaled.exp_().mul_(2.0 ** weight_bits(scaled.shape[1])).round_()


def _draw(scaled: Tensor, how: Mapping[str, Tensor]) -> Tensor:
    """One token per row, from what the filters leave."""
    weights = _weigh(scaled.clone())
    looks = scaled.device.type == "cpu" and scaled.shape[1] > _FEW
    filtered = _filter_each(scaled, weights, how) if looks else _filter(scaled, weights, how)
    ends = filtered.cumsum(-1)
    total = ends[:, -1:]
    uniform = uniform_bits(how["seeds"], how["sample_positions"]).double()[:, None] * 2.0**-UNIFORM_BITS
    unit = torch.minimum((uniform * total).floor_(), total - 1)
    # a row of NaN has no end beyond its unit, and its token is put right by the caller
    return (ends <= unit).sum(-1, keepdim=True)


def _filter(scaled: Tensor, weights: Tensor, how: Mapping[str, Tensor], total: Tensor | None = None) -> Tensor:
    """The weights, with 0 for every token that a filter removes. `total` is the whole row's, if this is a part."""
    count = weights.shape[1]
    order = scaled.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, order)
    ends = ranked.cumsum(-1)
    top_k = how["top_k"].long()[:, None]
    last = torch.where(top_k > 0, top_k, count).clamp(max=count)
    mass = torch.where(top_k > 0, ends.gather(-1, last - 1), ends[:, -1:] if total is None else total)
    kept = (ends - ranked) < how["top_p"].double()[:, None] * mass
    kept[:, 0] = True
    kept &= torch.arange(count, device=weights.device) < last
    kept &= ranked >= how["min_p"].double()[:, None] * ranked[:, :1]
    return torch.zeros_like(weights).scatter_(-1, order, torch.where(kept, ranked, 0.0))


def _filter_each(scaled: Tensor, weights: Tensor, how: Mapping[str, Tensor]) -> Tensor:
    """The same row by row, sorting no more than must be: a CPU sorts a whole vocabulary in tens of milliseconds."""
    for i, row in enumerate(scaled):
        top_k, top_p, min_p = (float(how[name][i]) for name in ("top_k", "top_p", "min_p"))
        mine = weights[i]
        total = mine.sum()
        if total.isnan():
            continue
        if min_p > 0 and not top_k and top_p >= 1:
            mine[mine < min_p * mine.max()] = 0
        elif top_k or top_p < 1:
            likeliest = _likeliest(row, mine, int(top_k), top_p * float(total))
            one = {name: how[name][i : i + 1] for name in ("top_k", "top_p", "min_p")}
            kept = _filter(row[likeliest][None], mine[likeliest][None], one, total)
            weights[i] = mine.new_zeros(len(mine)).index_copy_(0, likeliest, kept[0])
    return weights


def _likeliest(row: Tensor, weights: Tensor, top_k: int, mass: float) -> Tensor:
    """Tokens, in order, among them the `top_k` likeliest or, without `top_k`, the likeliest that make up `mass`."""
    count, most = min(top_k or _FEW, len(row)), len(row)
    while count < most:
        least = row.topk(count, sorted=False).values.min()
        found = (row >= least).nonzero()[:, 0]  # with all that equal the last
        if top_k or float(weights[found].sum()) >= mass:
            return found
        count = min(8 * count, most)
    return torch.arange(most)


TACTICS = (FunctionTactic("sample", "torch_sample", _run, refuses=_refuses, scratch=_scratch, version=2),)
