"""Two tensors that lie in one memory as halves of a whole: keys beside values, in the cache and among columns.

What is one tensor takes one kernel where two take two, and for few rows a kernel costs what its launch costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Memo = dict[Any, Any]


def paired(first: Tensor, second: Tensor) -> Tensor | None:
    """Both as `[2, …]`, a view; None where they are no such halves."""
    distance = second.storage_offset() - first.storage_offset()
    alike = first.shape == second.shape and first.stride() == second.stride() and first.dtype == second.dtype
    if not alike or distance <= 0 or first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return None
    return first.as_strided((2, *first.shape), (distance, *first.stride()), first.storage_offset())


def widest(tensor: Tensor) -> Tensor:
    """The same bytes as 8-byte integers where its rows lie so, for moving them: an element is what a kernel moves."""
    size = tensor.element_size()
    steps = (tensor.storage_offset(), tensor.shape[-1], *tensor.stride()[:-1])
    if size >= 8 or tensor.stride(-1) != 1 or any(step * size % 8 for step in steps) or tensor.data_ptr() % 8:
        return tensor
    return tensor.view(torch.int64)


def memo_of(ins: Mapping[str, Any]) -> Memo:
    """The step's memo; where nobody gives one, an empty one that lives as long as the call."""
    found: Memo | None = ins.get("memo")
    return {} if found is None else found
