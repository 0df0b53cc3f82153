"""Attention with torch: one tactic with a row class, and torch's own fused and explicit ones without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.attention import splits
from allotrope.ops.attention.spans import Spans
from allotrope.ops.contract import Array, Problem, Scalar

KEYS = 128  # keys of a split: short contexts waste less than they would with more, long ones merge less often
CPU_BYTES = 4 << 20  # what a group gathers should stay in a core's caches
CUDA_ITEMS = 16  # on CUDA every product has this many items: cuBLAS picks its kernel by their number, too
LEAST = -1e30  # stands for the maximum of no scores: finite, so that exp(−inf − LEAST) is 0 and not NaN


def _unsupported(problem: Problem, device: Device) -> str | None:
    params, axes = problem.params, problem.axes
    heads, kv_heads, head_dim = (int(params[name]) for name in ("heads", "kv_heads", "head_dim"))
    if device.kind not in ("cpu", "cuda"):
        return f"torch runs here on cpu and cuda, not on {device.kind}"
    if heads % kv_heads:
        return f"{heads} heads cannot share {kv_heads} key heads evenly"
    if (heads * head_dim, kv_heads * head_dim) != (axes["width"], axes["kv_width"]):
        return (
            f"{heads} heads over {kv_heads} of {head_dim} do not make {axes['width']} and {axes['kv_width']} channels"
        )
    return None


@dataclass(frozen=True)
class _Shape:
    """The numbers that a run needs again and again."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int

    @staticmethod
    def of(params: Mapping[str, Scalar]) -> _Shape:
        return _Shape(
            heads=int(params["heads"]),
            kv_heads=int(params["kv_heads"]),
            head_dim=int(params["head_dim"]),
            scale=float(params["scale"]),
            window=int(params.get("window", 0)),
        )

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Splits:
    """Fixed tiles of queries against fixed splits of keys, all in products of one shape, in fp32.

    Every item (a tile against a split) gives its scores' maximum, the sum of their exponentials and the
    weighted values by itself; a tile's items are then merged in the order of their keys.
    """

    queries: int  # positions per tile
    op: str = "attention"
    version: int = 1
    capturable: bool = False  # it plans on the host

    @property
    def name(self) -> str:
        """`torch_splits4` has tiles of 4 positions."""
        return f"torch_splits{self.queries}"

    def packings(self) -> Mapping[str, str]:
        """No weights."""
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Any dtype and head size will do."""
        return _unsupported(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """A class of its own: the tile's size decides which kernel the library picks, so no two agree."""
        return self.name

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing beyond torch's temporaries."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """Compute group by group."""
        shape, q, k_cache = _Shape.of(params), ins["q"], ins["k_cache"]
        k = k_cache.view(-1, shape.head_dim)
        v = ins["v_cache"].view(-1, shape.head_dim)
        for group in self._planned(ins["spans"], shape, k_cache.shape[1], q.device):
            result = self._group(group, q, k, v, shape)
            out["out"].index_copy_(0, group.out_rows, result.to(q.dtype))

    def _planned(self, spans: Spans, shape: _Shape, page_size: int, device: torch.device) -> list[splits.Group]:
        """The step's work with its arrays on the device; the first layer of a step plans for all."""
        key = (self.name, shape, page_size, device)
        if key not in spans.memo:
            cuda = device.type != "cpu"
            item_bytes = 2 * 4 * KEYS * shape.kv_heads * shape.head_dim
            most = CUDA_ITEMS if cuda else max(1, CPU_BYTES // item_bytes)
            planned = splits.groups(
                spans, queries=self.queries, keys=KEYS, window=shape.window, page_size=page_size, most=most, whole=cuda
            )
            spans.memo[key] = [_on_device(group, shape.kv_heads, device) for group in planned]
        found: list[splits.Group] = spans.memo[key]
        return found

    def _group(self, group: splits.Group, q: Tensor, k: Tensor, v: Tensor, shape: _Shape) -> Tensor:
        """[live queries, width] of one group."""
        queries, kv_heads, per, dim = self.queries, shape.kv_heads, shape.group, shape.head_dim
        mine = q.index_select(0, group.query_rows).float().mul_(shape.scale)
        tiles, places = len(mine) // queries, queries * per
        if queries > 1:
            mine = mine.view(tiles, queries, kv_heads, per, dim).transpose(1, 2).reshape(tiles, kv_heads, places, dim)
        mine = mine.view(tiles, kv_heads, places, dim)
        # Some products of 5, 6, 7, 9, … rows have other bits alone than in a batch; those of 4·n rows have not.
        spare = -places % 4 if places > 4 else 0
        mine = F.pad(mine, (0, 0, 0, spare)) if spare else mine
        heads = torch.arange(kv_heads, device=q.device).view(-1, 1)
        parts = [_attend(items, mine, k, v, heads, places) for items in group.parts]
        top, total, value = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        merged = _merge(top, total, value, group)[:, :, :places]
        if queries == 1:
            return merged.reshape(tiles, -1)
        merged = merged.view(tiles, kv_heads, queries, per, dim).transpose(1, 2)
        return merged.reshape(tiles * queries, -1).index_select(0, group.live)


def _attend(
    items: splits.Items, mine: Tensor, k: Tensor, v: Tensor, heads: Tensor, places: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per item the largest score [items, kv heads, places, 1], Σ exp [the same] and Σ exp · v [.., head_dim]."""
    count, kv_heads = len(items.tiles), len(heads)
    mine = mine.index_select(0, items.tiles).flatten(0, 1)  # [items · kv heads, padded places, head_dim]
    batch, padded, dim = mine.shape
    index = (items.slots + heads).view(-1)
    keys = k.index_select(0, index).view(batch, KEYS, dim).float()
    values = v.index_select(0, index).view(batch, KEYS, dim).float()
    scores = torch.bmm(mine, keys.mT).view(count, kv_heads, padded, KEYS)
    queries = items.hidden.shape[2]
    asked = scores if padded == places else scores[:, :, :places]
    asked.view(count, kv_heads, queries, -1, KEYS).masked_fill_(items.hidden, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp_(min=LEAST)
    weights = scores.sub_(top).exp_()
    value = torch.bmm(weights.view(batch, padded, KEYS), values)
    return top, weights.sum(-1, keepdim=True), value.view(count, kv_heads, padded, dim)


def _on_device(group: splits.Group, kv_heads: int, device: torch.device) -> splits.Group:
    """The group as `_attend` reads it: slots count heads, and the masks have axes for them."""

    def moved(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def items(part: splits.Items) -> splits.Items:
        return splits.Items(
            tiles=moved(part.tiles),
            slots=moved(part.slots[:, None, :] * kv_heads),
            hidden=moved(part.hidden[:, None, :, None, :]),
        )

    return splits.Group(
        query_rows=moved(group.query_rows),
        live=moved(group.live),
        out_rows=moved(group.out_rows),
        item_tiles=moved(group.item_tiles),
        parts=tuple(items(part) for part in group.parts),
        later=group.later,
    )


def _merge(top: Tensor, total: Tensor, value: Tensor, group: splits.Group) -> Tensor:
    """Tiles' results from their items', added up in the order of the keys."""
    items = len(group.item_tiles)  # what comes after them is padding
    tiles = group.later[0].start if group.later else items
    if group.later:
        highest = top[:tiles].clone()
        for some in group.later:
            first = highest[: some.stop - some.start]
            torch.maximum(first, top[some], out=first)
        weight = top[:items].sub_(highest.index_select(0, group.item_tiles)).exp_()
        total, value = total[:items].mul_(weight), value[:items].mul_(weight)
        for some in group.later:
            total[: some.stop - some.start] += total[some]
            value[: some.stop - some.start] += value[some]
    # 0 + x, because a sum of splits is never −0, while one split alone may be
    return torch.addcdiv(value.new_zeros(()), value[:tiles], total[:tiles])


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
        return _unsupported(problem, device)

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
        shape, q, page_size = _Shape.of(params), ins["q"], ins["k_cache"].shape[1]
        k = ins["k_cache"].view(-1, shape.kv_heads * shape.head_dim)
        v = ins["v_cache"].view(-1, shape.kv_heads * shape.head_dim)
        memo, key = ins["spans"].memo, ("whole", shape.window, page_size, q.device)
        if key not in memo:
            memo[key] = list(_dense_spans(ins["spans"], shape.window, page_size, q.device))
        for span in memo[key]:
            many = span.requests

            def heads(flat: Tensor, count: int, many: int = many) -> Tensor:
                return flat.view(many, -1, count, shape.head_dim).transpose(1, 2)

            result = self.dense(
                heads(q.index_select(0, span.rows), shape.heads),
                heads(k.index_select(0, span.slots), shape.kv_heads),
                heads(v.index_select(0, span.slots), shape.kv_heads),
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


def _sdpa(q: Tensor, k: Tensor, v: Tensor, span: _Span, scale: float) -> Tensor:
    visible = None if span.hidden is None else ~span.hidden
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=span.causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _explicit(q: Tensor, k: Tensor, v: Tensor, span: _Span, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(2, 3)) * scale
    hidden = span.hidden
    if span.causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


TACTICS = (
    Splits(queries=4),
    Splits(queries=1),
    Splits(queries=16),
    Whole("torch_sdpa", _sdpa),
    Whole("torch_explicit", _explicit),
)
