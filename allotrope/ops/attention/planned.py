"""The same tiles and splits as `splits.py`, planned on the device, so that a graph can hold them.

What the host knows of a step (how many splits a request has) is not known here, so there are as many as the page
table has room for, and each row has a tile of its own, in which it stands in its usual place:

    position 9   →   tile of 8..11, place 1        place 0..3 all hold the row's query; place 1 is kept
    splits           0 .. width of the page table  those that the query does not see weigh exactly 0

Each product has the shape that `splits.py` gives it, and splits are added up in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.ops.attention.splits import Items


@dataclass(frozen=True)
class Plan:
    """A step's work on the device, for every layer."""

    splits: int  # of each row, those without a key included
    parts: tuple[Items, ...]  # items split by split: first every row's first split
    place: Tensor  # [rows, 1, 1, 1, 1] which place of its tile is the row's own


def plan(
    starts: Tensor,
    first: Tensor,
    table: Tensor,
    rows: int,
    *,
    queries: int,
    keys: int,
    window: int,
    page_size: int,
    per_slot: int,
    most: int,
    whole: bool,
) -> Plan:
    """The plan for `rows` queries. A part has at most `most` items; with `whole` just as many."""
    row = torch.arange(rows, device=table.device)
    request = torch.searchsorted(starts, row, right=True).sub_(1).clamp_(max=len(first) - 1)
    position = first.long()[request] + row - starts.long()[request]
    oldest = (position - window + 1).clamp_(min=0) if window else torch.zeros_like(position)
    context = table.shape[1] * page_size
    seen_most = min(context, window) if window else context
    splits = -(-seen_most // keys) + (1 if window else 0)

    nth = torch.arange(splits, device=table.device)[:, None] + (oldest // keys)
    key = nth[..., None] * keys + torch.arange(keys, device=table.device)  # [splits, rows, keys]
    # Places outside what the row sees are read from its nearest visible key: what lies there may be poison.
    seen = torch.minimum(torch.maximum(key, oldest[:, None]), position[:, None])
    pages = table.long()[request].expand(splits, -1, -1).gather(-1, seen // page_size)
    slots = pages * page_size + seen % page_size
    hidden = key > position[:, None]
    if window:
        hidden |= key <= position[:, None] - window

    count = splits * rows
    index = torch.arange(-(-count // most) * most if whole else count, device=table.device)
    index = torch.where(index < count, index, 0)  # the last part repeats the first item
    slots, hidden = slots.view(count, keys), hidden.view(count, keys)
    parts = tuple(
        Items(
            tiles=some % rows,
            slots=slots[some][:, None, :] * per_slot,
            hidden=hidden[some][:, None, None, None, :].expand(-1, 1, queries, 1, -1),
        )
        for some in torch.split(index, most)
    )
    return Plan(splits, parts, (position % queries).view(rows, 1, 1, 1, 1))


def merge(top: Tensor, total: Tensor, value: Tensor, splits: int, rows: int) -> Tensor:
    """Each row's tile from its items, added up in the order of the keys. A split without a visible key adds 0."""
    items = splits * rows
    top, total, value = (torch.unflatten(part[:items], 0, (splits, rows)) for part in (top, total, value))
    if splits > 1:
        weight = (top - top.amax(0)).exp_()
        total, value = total * weight, value * weight
    sums, values = total[0], value[0]
    for some in range(1, splits):
        sums, values = sums + total[some], values + value[some]
    # 0 + x, because a sum of splits is never −0, while one split alone may be
    return torch.addcdiv(value.new_zeros(()), values, sums)
