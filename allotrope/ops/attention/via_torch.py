"""Attention with torch: tactics with a row class, planned here or on the device, and torch's own without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import kv_codes
from allotrope.ops.attention import planned, splits
from allotrope.ops.attention.flash import Flash
from allotrope.ops.attention.masked import Masked
from allotrope.ops.attention.shape import Shape, unsupported
from allotrope.ops.attention.spans import Spans
from allotrope.ops.attention.whole import Whole, explicit, sdpa
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.pairs import memo_of

KEYS = 128  # keys of a split: short contexts waste less than they would with more, long ones merge less often
CPU_BYTES = 4 << 20  # what a group gathers should stay in a core's caches
CUDA_ITEMS = 16  # on CUDA every product has this many items: cuBLAS picks its kernel by their number, too
LEAST = -1e30  # stands for the maximum of no scores: finite, so that exp(−inf − LEAST) is 0 and not NaN


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
        return unsupported(problem, device)

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
        shape, q, page_size = Shape.of(params), ins["q"], ins["k_cache"].shape[1]
        k, v = (_flat(ins[name], shape) for name in ("k_cache", "v_cache"))
        for group in self._planned(ins["spans"], shape, page_size, q.device):
            result = self._group(group, q, k, v, shape)
            out["out"].index_copy_(0, group.out_rows, result.to(q.dtype))

    def _planned(self, spans: Spans, shape: Shape, page_size: int, device: torch.device) -> list[splits.Group]:
        """The step's work with its arrays on the device; the first layer of a step plans for all."""
        key = (self.name, shape, page_size, device)
        if key not in spans.memo:
            cuda = device.type != "cpu"
            most = _items_of_a_product(shape, device)
            found = splits.groups(
                spans, queries=self.queries, keys=KEYS, window=shape.window, page_size=page_size, most=most, whole=cuda
            )
            spans.memo[key] = [_on_device(group, _per_slot(shape), device) for group in found]
        known: list[splits.Group] = spans.memo[key]
        return known

    def _group(self, group: splits.Group, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
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
        heads = torch.arange(_per_slot(shape), device=q.device).view(-1, 1)
        parts = [_attend(items, mine, k, v, heads, places, shape) for items in group.parts]
        top, total, value = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        merged = _merge(top, total, value, group)[:, :, :places]
        if queries == 1:
            return merged.reshape(tiles, -1)
        merged = merged.view(tiles, kv_heads, queries, per, dim).transpose(1, 2)
        return merged.reshape(tiles * queries, -1).index_select(0, group.live)


def _items_of_a_product(shape: Shape, device: torch.device) -> int:
    if device.type != "cpu":
        return CUDA_ITEMS
    return max(1, CPU_BYTES // (2 * 4 * KEYS * shape.kv_heads * shape.head_dim))


@dataclass(frozen=True)
class Planned:
    """The same products as `Splits`, planned on the device: for requests that decode, a row's tile is its own."""

    queries: int  # positions per tile
    op: str = "attention"
    version: int = 1
    capturable: bool = True

    @property
    def name(self) -> str:
        """`torch_planned4`: for tiles of four."""
        return f"torch_planned{self.queries}"

    def packings(self) -> Mapping[str, str]:
        """No weights."""
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Any dtype and head size will do."""
        return unsupported(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """That of the tiles."""
        return f"torch_splits{self.queries}"

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing beyond torch's temporaries."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """Every row against all splits that the page table has room for."""
        shape, q, page_size = Shape.of(params), ins["q"], ins["k_cache"].shape[1]
        rows, kv_heads, per, dim = len(q), shape.kv_heads, shape.group, shape.head_dim
        memo, key = memo_of(ins), (self.name, shape, page_size, rows)
        if key not in memo:
            memo[key] = planned.plan(
                ins["row_starts"],
                ins["row_first"],
                ins["page_table"],
                rows,
                queries=self.queries,
                keys=KEYS,
                window=shape.window,
                page_size=page_size,
                per_slot=_per_slot(shape),
                most=_items_of_a_product(shape, q.device),
                whole=q.is_cuda,
            )
        plan: planned.Plan = memo[key]
        places = self.queries * per
        mine = (q.float() * shape.scale).view(rows, 1, kv_heads, per, dim).expand(-1, self.queries, -1, -1, -1)
        mine = mine.transpose(1, 2).reshape(rows, kv_heads, places, dim)
        spare = -places % 4 if places > 4 else 0
        mine = F.pad(mine, (0, 0, 0, spare)) if spare else mine
        k, v = (_flat(ins[name], shape) for name in ("k_cache", "v_cache"))
        heads = torch.arange(_per_slot(shape), device=q.device).view(-1, 1)
        parts = [_attend(items, mine, k, v, heads, places, shape) for items in plan.parts]
        top, total, value = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        merged = planned.merge(top, total, value, plan.splits, rows)[:, :, :places]
        merged = merged.reshape(rows, kv_heads, self.queries, per, dim)
        own = merged.gather(2, plan.place.expand(-1, kv_heads, 1, per, dim))
        out["out"].copy_(own.view(rows, -1))


def _attend(
    items: splits.Items, mine: Tensor, k: Tensor, v: Tensor, heads: Tensor, places: int, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Per item the largest score [items, kv heads, places, 1], Σ exp [the same] and Σ exp · v [.., head_dim]."""
    count, kv_heads = len(items.tiles), shape.kv_heads
    mine = mine.index_select(0, items.tiles).flatten(0, 1)  # [items · kv heads, padded places, head_dim]
    batch, padded, dim = mine.shape
    index = (items.slots + heads).view(-1)
    keys, key_scales = _held(k, index, shape)
    values, value_scales = _held(v, index, shape)
    scores = torch.bmm(mine, keys.view(batch, KEYS, dim).mT).view(count, kv_heads, padded, KEYS)
    if key_scales is not None:
        scores.mul_(key_scales)
    queries = items.hidden.shape[2]
    asked = scores if padded == places else scores[:, :, :places]
    asked.view(count, kv_heads, queries, -1, KEYS).masked_fill_(items.hidden, -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp_(min=LEAST)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    if value_scales is not None:
        weights.mul_(value_scales)
    value = torch.bmm(weights.view(batch, padded, KEYS), values.view(batch, KEYS, dim))
    return top, total, value.view(count, kv_heads, padded, dim)


def _flat(cache: Tensor, shape: Shape) -> Tensor:
    """The cache's rows one after the other; where they are as wide as can be, each head by itself."""
    return cache.flatten(0, 1) if shape.narrow else cache.reshape(-1, shape.head_dim)


def _per_slot(shape: Shape) -> int:
    """How many rows of `_flat` a slot has."""
    return 1 if shape.narrow else shape.kv_heads


def _held(flat: Tensor, index: Tensor, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """Some rows as fp32 [items · kv heads · KEYS, head_dim]; if these are scaled, scales [items, kv heads, 1, KEYS].

    Scales are left to be multiplied with scores and weights, which are fewer than the codes.
    """
    found = flat.index_select(0, index)
    if not shape.narrow:
        return found.float(), None
    codes, scales = kv_codes.parts(found.view(-1, KEYS, found.shape[1]), shape.kv_heads, shape.head_dim, shape.kv)
    wide = kv_codes.widened(codes.transpose(1, 2))
    return wide, None if scales is None else scales.transpose(1, 2).unsqueeze(2)


def _on_device(group: splits.Group, per_slot: int, device: torch.device) -> splits.Group:
    """The group as `_attend` reads it: slots count rows of `_flat`, and the masks have axes for them."""

    def moved(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def items(part: splits.Items) -> splits.Items:
        return splits.Items(
            tiles=moved(part.tiles),
            slots=moved(part.slots[:, None, :] * per_slot),
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


TACTICS = (
    Flash(),
    Splits(queries=4),
    Splits(queries=1),
    Splits(queries=16),
    Planned(queries=4),
    Masked(Flash()),
    Whole("torch_sdpa", sdpa),
    Whole("torch_explicit", explicit),
)
