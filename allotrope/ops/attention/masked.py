"""torch's scaled dot product over keys gathered for each decoding row up to the width of the page table, and a mask.

Prompts go to FlashAttention: there are no scores to be masked there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.attention.flash import Flash, loadable
from allotrope.ops.attention.shape import Shape
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.kv_codes import read
from allotrope.ops.pairs import memo_of, paired

_WIDEST = 64  # channels of a head
_FEW = 8  # rows


@dataclass(frozen=True)
class Masked:
    """One gather and one dense attention kernel, for rows that decode."""

    prompts: Flash
    name: str = "torch_masked"
    op: str = "attention"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """No weights."""
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Where FlashAttention can serve, with heads that need no kernel made at run time."""
        head_dim = int(problem.params["head_dim"])
        if head_dim > _WIDEST:
            return (
                f"for heads of {head_dim} channels cuDNN compiles a kernel when it first meets a size, while one waits"
            )
        if problem.axes["rows"] > _FEW:
            return f"with more than {_FEW} rows its results were seen to change from run to run (64 rows, torch 2.11)"
        return self.prompts.why_not(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """None: torch picks a kernel by the sizes of the whole batch."""
        return None

    def workspace(self, problem: Problem, device: Device) -> int:
        """Nothing beyond torch's temporaries."""
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array]:
        """Gather and attend."""
        q, table, shape = loadable(ins["q"]), ins["page_table"], Shape.of(params)
        if len(q) != len(table):
            return self.prompts.run(out, ins, params, workspace)
        rows, heads = len(q), shape.heads
        memo, key = memo_of(ins), (self.name, heads, ins["k_cache"].shape[1])
        if key not in memo:
            memo[key] = _planned(ins["row_first"], table, ins["k_cache"], heads, q.dtype)
        slots, mask = memo[key]
        keys, values = (torch.unflatten(part, 0, (rows, -1)) for part in _gathered(ins, slots, shape))
        result = F.scaled_dot_product_attention(
            torch.unflatten(q, 1, (heads, 1, shape.head_dim)),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            scale=shape.scale,
            enable_gqa=shape.group > 1,
        )
        return {"out": result.reshape(rows, -1)}


def _planned(first: Tensor, table: Tensor, k_cache: Tensor, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which rows of the caches to gather, of keys and then of values, and what to add to the scores.

    Places beyond a row's context are read from its last key: what lies there may be NaN, and would come through.
    """
    pages, page_size = k_cache.shape[:2]
    place = torch.arange(table.shape[1] * page_size, device=table.device)
    seen = torch.minimum(place, first.long()[:, None])
    slots = (table.long().gather(1, seen // page_size) * page_size + seen % page_size).view(-1)
    hidden = place > first.long()[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=table.device).masked_fill_(hidden, -torch.inf)
    return torch.cat([slots, slots + pages * page_size]), mask[:, None, None].expand(-1, heads, 1, -1)


def _gathered(ins: Mapping[str, Array], slots: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Keys and values, `[rows · context, kv heads, head_dim]` each."""

    def held(rows: Tensor) -> Tensor:
        return read(rows, shape.kv_heads, shape.head_dim, shape.kv, ins["q"].dtype)

    both, half = paired(ins["k_cache"], ins["v_cache"]), len(slots) // 2
    if both is not None and both.is_contiguous():
        found = held(both.view(-1, both.shape[-1])[slots])
        return found[:half], found[half:]
    keys, values = (held(ins[name].flatten(0, 1)[slots[:half]]) for name in ("k_cache", "v_cache"))
    return keys, values
