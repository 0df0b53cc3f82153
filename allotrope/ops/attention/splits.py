"""Cuts a step's attention into pieces whose bits depend on nothing but their own request.

Queries fall into tiles at absolute positions, keys into splits at absolute positions:

    position   0    4    8    12   16   20          with tiles of 4 and splits of 8
    keys       |---------|---------|-----           an item is one tile against one split
    queries    |    |    |  ██|██  |    |           a chunk of positions 10..13 touches 2 tiles

A query stands in the same row of the same tile against the same splits whichever chunk brings it, so
the shape of every product, and with it every bit, is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from allotrope.ops.attention.spans import Spans

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Tiles against splits, as many as one product takes."""

    tiles: Any  # [items] each item's tile
    slots: Any  # [items, keys] page · page_size + offset
    hidden: Any  # [items, queries, keys] True where a query must not see


@dataclass(frozen=True)
class Group:
    """Tiles that are computed together, and their items, split by split: first every tile's first split.

    Tiles are sorted by their number of splits, so those that have an n-th split are the first ones.
    """

    query_rows: Any  # [tiles · queries] the row of q in each place; places without a query repeat another's
    live: Any  # [n] places (tile · queries + i) that have a query
    out_rows: Any  # [n] and the rows that they answer
    item_tiles: Any  # [items] the tile that each item belongs to
    parts: tuple[Items, ...]  # the items again, in portions
    later: tuple[slice, ...]  # the items of the second splits, the third ones, …


def groups(
    spans: Spans, *, queries: int, keys: int, window: int, page_size: int, most: int, whole: bool
) -> Iterator[Group]:
    """The step's work, in groups of at most `most` items (or one tile), as NumPy arrays.

    A part has at most `most` items; with `whole` just as many, the last part repeating the first item.
    """
    tiles = _tiles(spans, queries, keys, window)
    if not len(tiles.splits):
        return
    ends = np.cumsum(tiles.splits)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield _group(tiles.take(slice(start, stop)), spans, queries, keys, window, page_size, most, whole)
        start = stop


@dataclass(frozen=True)
class _Tiles:
    """Per tile: its request, its first place's position, its first and last query's, the keys they see, its splits."""

    request: Longs
    base: Longs
    low: Longs
    high: Longs
    first_key: Longs
    splits: Longs

    def take(self, index: Any) -> _Tiles:
        """Some of them."""
        return _Tiles(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _tiles(spans: Spans, queries: int, keys: int, window: int) -> _Tiles:
    lengths = spans.lengths.astype(np.int64)
    first = spans.first.astype(np.int64)
    last = first + lengths - 1
    first_tile = first // queries
    count = np.where(lengths > 0, last // queries - first_tile + 1, 0)
    request = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(request)) - np.repeat(np.cumsum(count) - count, count)
    base = (first_tile[request] + nth) * queries
    low, high = np.maximum(base, first[request]), np.minimum(base + queries - 1, last[request])
    first_key = np.maximum(low - window + 1, 0) if window else np.zeros_like(low)
    tiles = _Tiles(request, base, low, high, first_key, high // keys - first_key // keys + 1)
    return tiles.take(np.argsort(-tiles.splits, kind="stable"))


def _group(
    tiles: _Tiles, spans: Spans, queries: int, keys: int, window: int, page_size: int, most: int, whole: bool
) -> Group:
    position = tiles.base[:, None] + np.arange(queries)
    there = np.clip(position, tiles.low[:, None], tiles.high[:, None])
    query_rows = (spans.starts[tiles.request] - spans.first[tiles.request])[:, None] + there
    live = np.flatnonzero(position == there)

    having = (tiles.splits > np.arange(tiles.splits[0])[:, None]).sum(axis=1)  # tiles that have an n-th split
    item_tiles = np.concatenate([np.arange(count) for count in having])
    nth = np.repeat(np.arange(len(having)), having)
    ends = np.cumsum(having).tolist()
    index = np.arange(-(-len(nth) // most) * most if whole else len(nth))
    index[len(nth) :] = 0
    parts = (
        _items(tiles.take(item_tiles[some]), item_tiles[some], nth[some], position, spans, keys, window, page_size)
        for some in np.split(index, range(most, len(index), most))
    )
    return Group(
        query_rows.astype(np.int64).ravel(),
        live,
        query_rows.astype(np.int64).ravel()[live],
        item_tiles,
        tuple(parts),
        tuple(itertools.starmap(slice, itertools.pairwise(ends))),
    )


def _items(
    of: _Tiles, tiles: Longs, nth: Longs, position: Longs, spans: Spans, keys: int, window: int, page_size: int
) -> Items:
    key = (of.first_key // keys + nth)[:, None] * keys + np.arange(keys)
    # Places outside what the tile sees are read from its nearest visible key: what lies there may be
    # poison, and a NaN would come through even at weight 0.
    seen = np.clip(key, of.first_key[:, None], of.high[:, None])
    slots = spans.pages[of.request[:, None], seen // page_size].astype(np.int64) * page_size + seen % page_size
    at = position[tiles][:, :, None]
    hidden = key[:, None, :] > at
    if window:
        hidden |= key[:, None, :] <= at - window
    return Items(tiles, slots, hidden)
