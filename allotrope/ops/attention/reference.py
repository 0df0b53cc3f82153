"""The plain version: request by request, softmax(q·kᵀ)·v on the keys gathered from the pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allotrope.ops.attention.spans import Spans
from allotrope.ops.check import RowCase
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.kv_codes import coded, read
from allotrope.ops.kv_rows import COMPUTE

POISON_PAGES = 3


def reference(ins: Mapping[str, Array], params: Mapping[str, Scalar]) -> dict[str, Array]:
    """Causal attention in the inputs' dtype, with the softmax in fp32 at least."""
    q, window = ins["q"], int(params["window"])
    heads, kv_heads, head_dim = (int(params[name]) for name in ("heads", "kv_heads", "head_dim"))
    page_size = ins["k_cache"].shape[1]
    form = str(params["kv"])
    caches = [ins[name].flatten(0, 1) for name in ("k_cache", "v_cache")]
    starts, firsts = ins["row_starts"].tolist(), ins["row_first"].tolist()
    out = torch.empty_like(q)
    for request, first in enumerate(firsts):
        rows = slice(starts[request], starts[request + 1])
        positions = torch.arange(first, first + rows.stop - rows.start, device=q.device)
        oldest = max(first - window + 1, 0) if window else 0
        keys = torch.arange(oldest, first + len(positions), device=q.device)
        slots = ins["page_table"][request].long()[keys // page_size] * page_size + keys % page_size
        held = (read(cache[slots], kv_heads, head_dim, form, q.dtype) for cache in caches)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1) for part in held)
        scores = q[rows].view(-1, heads, head_dim).transpose(0, 1) @ k.transpose(1, 2) * float(params["scale"])
        hidden = keys > positions[:, None]
        if window:
            hidden |= keys <= positions[:, None] - window
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=wide).to(q.dtype)
        out[rows] = (weights @ v).transpose(0, 1).reshape(len(positions), -1)
    return {"out": out}


@dataclass(frozen=True)
class Request:
    """One request's part of a step: all its keys and values, and the queries at `first` and after."""

    k: Tensor  # [keys, kv_width]
    v: Tensor
    q: Tensor  # [queries, width]
    first: int


def assemble(
    requests: Sequence[Request], page_size: int, random: torch.Generator, form: str = COMPUTE, kv_heads: int = 1
) -> dict[str, Array]:
    """A step's inputs: the requests' keys on shuffled pages, in the form asked for, NaN in every other place."""
    held = [-(-len(request.k) // page_size) for request in requests]
    pages = sum(held) + POISON_PAGES
    order = torch.randperm(pages, generator=random).int()
    table = torch.full((len(requests), max(held) + 1), -1, dtype=torch.int32)
    laid = [[rows if form == COMPUTE else coded(rows, kv_heads, form) for rows in (r.k, r.v)] for r in requests]
    some = laid[0][0]
    caches = torch.empty((2, pages, page_size, some.shape[1]), dtype=some.dtype)
    caches.fill_(torch.nan if some.is_floating_point() else 0xFF)  # bytes that make a scale NaN
    taken = 0
    for number, (request, count) in enumerate(zip(requests, held, strict=True)):
        mine = order[taken : taken + count]
        table[number, :count] = mine
        keys = torch.arange(len(request.k))
        for cache, rows in zip(caches, laid[number], strict=True):
            cache[mine[keys // page_size].long(), keys % page_size] = rows
        taken += count
    starts = torch.tensor([0, *np.cumsum([len(request.q) for request in requests])], dtype=torch.int32)
    first = torch.tensor([request.first for request in requests], dtype=torch.int32)
    return {
        "q": torch.cat([request.q for request in requests]),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "row_starts": starts,
        "row_first": first,
        "page_table": table,
        "spans": Spans(starts.numpy(), first.numpy(), table.numpy()),
        "memo": {},
    }


def _drawn(problem: Problem, keys: int, first: int, queries: int, random: torch.Generator) -> Request:
    """Random queries, keys and values with a few loud channels, as trained models have them."""

    def rows(count: int, width: int) -> Tensor:
        values = torch.randn(count, width, generator=random, dtype=torch.float64)
        loud = torch.randperm(width, generator=random)[: max(1, width // 64)]
        values[:, loud] *= 4
        return values

    width = problem.axes["width"]
    kv_width = int(problem.params["kv_heads"]) * int(problem.params["head_dim"])
    return Request(rows(keys, kv_width), rows(keys, kv_width), rows(queries, width), first)


def _assembled(problem: Problem, requests: Sequence[Request], random: torch.Generator) -> dict[str, Array]:
    form, kv_heads = str(problem.params.get("kv", COMPUTE)), int(problem.params["kv_heads"])
    return assemble(requests, problem.axes["page_size"], random, form, kv_heads)


def make_inputs(problem: Problem, seed: int) -> dict[str, Array]:
    """Ragged requests: queries split unevenly, contexts within a few pages of `context`, one of them exact."""
    random = torch.Generator().manual_seed(seed)
    rows, requests, context = (problem.axes[name] for name in ("rows", "requests", "context"))
    if not requests <= rows <= requests * context:
        raise ValueError(f"{rows} rows cannot be shared by {requests} requests of at most {context} keys")
    queries = torch.full((requests,), rows // requests)
    queries[: rows % requests] += 1
    for _ in range(requests):  # move queries about, keeping 1..context each
        giver, taker = torch.randint(requests, (2,), generator=random).tolist()
        most = min(int(queries[giver]) - 1, context - int(queries[taker]))
        moved = int(torch.randint(most + 1, (1,), generator=random)) if most > 0 and giver != taker else 0
        queries[giver] -= moved
        queries[taker] += moved
    drawn = []
    for number, count in enumerate(queries.tolist()):
        slack = min(context - count, 2 * problem.axes["page_size"])
        keys = context - (int(torch.randint(slack + 1, (1,), generator=random)) if number else 0)
        request = _drawn(problem, keys, keys - count, count, random)
        if problem.params.get("window"):  # keys that have slid out of every query's window may be anything
            gone = max(0, request.first - int(problem.params["window"]) + 1)
            request.k[:gone] = request.v[:gone] = torch.nan
        drawn.append(request)
    return _assembled(problem, drawn, random)


def row_cases(problem: Problem, seed: int, counts: Sequence[int]) -> list[RowCase]:
    """Four queries of one request: each decoded alone, among other requests, and in prefill chunks of all sizes.

    A neighbour is healthy or holds NaN and infinity; the pages lie differently each time.
    """
    random = torch.Generator().manual_seed(seed)
    context = problem.axes["context"]
    whole = _drawn(problem, context, 0, context, random)
    probes = dict(enumerate(torch.randint(context, (4,), generator=random).tolist()))
    cases = []

    def case(before: list[Request], first: int, stop: int, after: list[Request]) -> None:
        mine = Request(whole.k[:stop], whole.v[:stop], whole.q[first:stop], first)
        skipped = sum(len(other.q) for other in before)
        ins = _assembled(problem, [*before, mine, *after], random)
        axes = {**problem.axes, "rows": len(ins["q"]), "requests": len(ins["row_first"])}
        at = {probe: skipped + position - first for probe, position in probes.items() if first <= position < stop}
        cases.append(RowCase(dataclasses.replace(problem, axes=axes), ins, at))

    def others(count: int, hostile: bool) -> list[Request]:
        found = []
        for _ in range(count):
            keys = int(torch.randint(1, 20, (1,), generator=random))
            other = _drawn(problem, keys, keys - 1, 1, random)
            if hostile:
                other.q[0, ::2], other.k[-1], other.v[0] = torch.nan, torch.inf, torch.nan
            found.append(other)
        return found

    for number, position in enumerate(probes.values()):
        case([], position, position + 1, [])
        for rows in counts[1:] if number == 0 else counts[1:-1]:
            before = int(torch.randint(rows, (1,), generator=random))
            hostile = bool(len(cases) % 2)
            case(others(before, hostile), position, position + 1, others(rows - 1 - before, hostile))
        for chunk in (7, 16):
            first = position // chunk * chunk
            case(others(2, True), first, min(first + chunk, context), others(1, False))
    case([], 0, context, [])
    return cases
