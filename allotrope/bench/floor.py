"""The least time that a cell could take here: its steps' reads and products against the measured ceilings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from allotrope.artifact.plan import Plan
from allotrope.bench.grid import Cell
from allotrope.bench.limit import Limit, limit
from allotrope.bench.watch import Step
from allotrope.hw.peaks import Ceilings
from allotrope.runtime.step import WANT_LAST, Ints


@dataclass(frozen=True)
class Floors:
    """What prefill and decoding of a cell must move and compute, and the least time for each."""

    prefill: Limit
    decode: Limit

    def to_json(self, cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
        """The limit in plain values, and the share of it that figures `found` reach; None without ceilings."""
        ctx, gen = self.prefill.seconds, self.decode.seconds
        if ctx is None or gen is None:
            shares: dict[str, float | None] = dict.fromkeys(("overall", "prefill", "decode"))
        else:
            shares = {
                "overall": (ctx + gen) * 1e3 / found["latency_ms"],
                "prefill": ctx * 1e3 / found["t_ctx_ms"],
                "decode": gen * 1e3 / found["t_gen_ms"] if cell.output > 1 and found["t_gen_ms"] else None,
            }
        return {
            "limit_ms": None if ctx is None or gen is None else (ctx + gen) * 1e3,
            "limit_bytes": self.prefill.bytes + self.decode.bytes,
            "limit_flops": self.prefill.flops + self.decode.flops,
            "share_of_limit": shares["overall"],
            "shares": shares,
        }


def floors(plan: Plan, cell: Cell, ceilings: Ceilings | None) -> Floors:
    """Of one cell: all prompts in one step, then a step per token."""
    rows = np.full(cell.batch, 1, np.int32)
    first = _step(rows * cell.input, rows * 0)
    rest = [_step(rows, rows * (cell.input + i)) for i in range(cell.output - 1)]
    return Floors(limit(plan, [first], ceilings), limit(plan, rest, ceilings))


def _step(counts: Ints, first: Ints) -> Step:
    """A token drawn for each request after `counts` tokens from position `first` on."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    rows = len(counts)
    return Step(starts, first, np.full(rows, WANT_LAST, np.uint8), np.ones(rows, np.bool_))
