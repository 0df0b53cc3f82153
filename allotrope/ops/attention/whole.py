"""Attention with each request's keys gathered whole, for torch's own dense kernels. Nothing here has a row class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.attention.shape import Shape, unsupported
from allotrope.ops.attention.spans import Spans
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.kv_codes import read


@dataclass(frozen=True)
class _Span:
    """Requests that one dense call serves: as many queries each, and keys padded to the longest."""

    rows: Tensor  # [requests · queries] rows of q and out
    slots: Tensor  # [requests · keys]
    hidden: Tensor | None  # [requests, 1, queries, keys] True where a query must not see; None: nowhere
    causal: bool  # hidden above the diagonal of a square, and hence not spelt out
    requests: int


Dense = Callable[[Tensor, Tensor, Tensor, _Span, float], Tensor]
"""(q [requests, heads, queries, dim], k and v [requests, kv heads, keys, dim], span, scale) → as q."""

BUCKET = 128  # decoding requests share a call when their key counts, rounded up to this, agree


@dataclass(frozen=True)
class Whole:
    """Each request's keys gathered whole, then one dense call for it (for like decoding requests together)."""

    name: str
    dense: Dense
    op: str = "attention"
    version: int = 1
    capturable: bool = False  # it plans on the host

    def packings(self) -> Mapping[str, str]:
        """No weights."""
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Any dtype and head size will do."""
        return unsupported(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """None: the products' shapes, and so their bits, follow the batch and the chunk."""
        return None

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing beyond torch's temporaries."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """Compute span by span."""
        shape, q, page_size = Shape.of(params), ins["q"], ins["k_cache"].shape[1]
        k, v = (ins[name].flatten(0, 1) for name in ("k_cache", "v_cache"))
        memo, key = ins["spans"].memo, ("whole", shape.window, page_size, q.device)
        if key not in memo:
            memo[key] = list(_dense_spans(ins["spans"], shape.window, page_size, q.device))
        for span in memo[key]:
            many = span.requests

            def heads(flat: Tensor, many: int = many) -> Tensor:
                return torch.unflatten(flat, 0, (many, -1)).transpose(1, 2)

            def held(cache: Tensor, slots: Tensor = span.slots) -> Tensor:
                return read(cache.index_select(0, slots), shape.kv_heads, shape.head_dim, shape.kv, q.dtype)

            result = self.dense(
                heads(torch.unflatten(q.index_select(0, span.rows), 1, (shape.heads, shape.head_dim))),
                heads(held(k)),
                heads(held(v)),
                span,
                shape.scale,
            )
            out["out"].index_copy_(0, span.rows, result.transpose(1, 2).reshape(len(span.rows), -1))


def _dense_spans(spans: Spans, window: int, page_size: int, device: torch.device) -> Iterator[_Span]:
    """The step's requests, decoding ones bucketed by their number of keys."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for request, length in enumerate(spans.lengths):
        keys = min(int(spans.first[request]) + 1, window or 1 << 62)
        bucket = (-1, -(-keys // BUCKET)) if length == 1 else (request, 0)
        if length:
            buckets.setdefault(bucket, []).append(request)
    for members in buckets.values():
        some = np.array(members)
        length = int(spans.lengths[members[0]])
        first = spans.first[some].astype(np.int64)
        last = first + length - 1
        low = np.maximum(first - window + 1, 0) if window else np.zeros_like(first)
        key = low[:, None] + np.arange(int((last - low).max()) + 1)
        seen = np.minimum(key, last[:, None])  # beyond a request's own keys: one of them again, and hidden
        slots = spans.pages[some[:, None], seen // page_size].astype(np.int64) * page_size + seen % page_size
        at = first[:, None] + np.arange(length)
        hidden = key[:, None, :] > at[:, :, None]
        if window:
            hidden |= key[:, None, :] <= at[:, :, None] - window
        causal = length > 1 and hidden.shape[1] == hidden.shape[2] and int(hidden.sum()) == length * (length - 1) // 2
        rows = spans.starts[some].astype(np.int64)[:, None] + np.arange(length)
        spelt = hidden.any() and not causal
        yield _Span(
            rows=torch.from_numpy(rows.ravel()).to(device),
            slots=torch.from_numpy(slots.ravel()).to(device),
            hidden=torch.from_numpy(hidden[:, None]).to(device) if spelt else None,
            causal=causal,
            requests=len(members),
        )


def sdpa(q: Tensor, k: Tensor, v: Tensor, span: _Span, scale: float) -> Tensor:
    """torch's own choice of kernel."""
    visible = None if span.hidden is None else ~span.hidden
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=span.causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def explicit(q: Tensor, k: Tensor, v: Tensor, span: _Span, scale: float) -> Tensor:
    """Two products and a softmax."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(2, 3)) * scale
    hidden = span.hidden
    if span.causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v
