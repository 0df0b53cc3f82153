"""FlashAttention as torch brings it, over keys gathered from the pages, for prompts and decoding rows alike.

Everything is planned on the device: pages are gathered up to the width of the page table, and the kernel is told
how many of each request's keys count. It works through a request's keys in blocks of fixed length at absolute
positions, from the last block to the first, and adds nothing (with weight 0) for a block that a query does not
see: so a row's bits depend on its own request alone, wherever it stands among a tile's rows.

    pages    | 7 | 2 | 9 | - |        gathered   | 7 | 2 | 9 | ? |        used   2 · page_size + 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.attention.shape import Shape, unsupported
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.kv_codes import read
from allotrope.ops.pairs import memo_of, paired

_LARGEST = 256  # channels of a head


@dataclass(frozen=True)
class Flash:
    """One gather and one attention kernel."""

    name: str = "torch_flash"
    op: str = "attention"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """No weights."""
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """It is a kernel for 16 bits on CUDA."""
        if device.kind != "cuda":
            return "torch's flash attention with lengths that only the device knows runs on CUDA alone"
        if problem.dtype not in ("fp16", "bf16"):
            return f"flash attention computes fp16 and bf16, not {problem.dtype}"
        head_dim = int(problem.params["head_dim"])
        if head_dim % 8 or head_dim > _LARGEST:
            return f"flash attention takes heads of up to {_LARGEST} channels in steps of 8, not of {head_dim}"
        if problem.params.get("window", 0):
            return "what has slid out of the window may be NaN, and flash attention reads it with weight 0"
        return unsupported(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its own."""
        return self.name

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing beyond torch's temporaries."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array]:
        """Gather and attend."""
        shape, table = Shape.of(params), ins["page_table"]
        page_size, q = ins["k_cache"].shape[1], loadable(ins["q"])
        memo, key = memo_of(ins), (self.name, page_size)
        if key not in memo:
            memo[key] = _planned(ins["row_starts"], ins["row_first"], table, ins["k_cache"])
        pages, used, key_starts = memo[key]
        keys, values = _gathered(ins["k_cache"], ins["v_cache"], pages, shape, q.dtype)
        decodes = len(q) == len(table)  # each request has one row, which sees all its keys
        grouped = shape.group > 1
        result = torch.ops.aten._flash_attention_forward(
            q.view(len(q), -1, shape.head_dim),
            keys,
            values,
            ins["row_starts"],
            key_starts,
            # One query at most, and heads in groups: that would pick another kernel, with other bits.
            (2 if grouped else 1) if decodes else len(q),
            table.shape[1] * page_size,
            0.0,
            not decodes,
            False,
            scale=shape.scale,
            seqused_k=used,
        )[0]
        return {"out": result.flatten(1)}


def loadable(q: Tensor) -> Tensor:
    """`q`, copied if its rows do not begin at 16 bytes, as the kernel loads them."""
    step = q.stride(0) * q.element_size()
    return q if q.data_ptr() % 16 == 0 and step % 16 == 0 else q.contiguous().clone()


def _planned(starts: Tensor, first: Tensor, table: Tensor, k_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What all layers need: which pages to gather, of keys and then of values; how many keys of each request count;
    where a request's keys begin."""
    requests, width = table.shape
    pages, page_size = k_cache.shape[:2]
    used = starts.diff().add_(first)
    step = width * page_size
    key_starts = torch.arange(0, (requests + 1) * step, step, device=table.device, dtype=torch.int32)
    own = table.long().clamp_(min=0).view(-1)
    return torch.cat([own, own + pages]), used, key_starts


def _gathered(
    k_cache: Tensor, v_cache: Tensor, pages: Tensor, shape: Shape, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values, `[pages · page_size, heads, head_dim]` each."""

    def held(found: Tensor) -> Tensor:
        rows = found.view(-1, k_cache.shape[2])
        return read(rows, shape.kv_heads, shape.head_dim, shape.kv, dtype)

    both, half = paired(k_cache, v_cache), len(pages) // 2
    if both is not None and both.is_contiguous():
        found = held(both.view(2 * len(k_cache), -1)[pages])
        return found[: len(found) // 2], found[len(found) // 2 :]
    return held(k_cache.flatten(1)[pages[:half]]), held(v_cache.flatten(1)[pages[:half]])
