"""The least time that a load's steps could take here: what they must read, over the measured bandwidth.

A step reads every matrix that it multiplies with once, however many rows there are, and each request's
keys and values. Tables of which only some rows are looked up, and whatever could stay in a cache between
two ops, are left out; where a step's products take longer than its reading, as in a long prompt's, they count:
products of integer codes with integer codes at the integers' rate. What a step reads the next one reads again,
so a model that fits a cache is held against that cache's measured rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from allotrope.artifact import layout
from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.bench.watch import Step
from allotrope.build.tasks import rows_kind
from allotrope.hw.peaks import INT8, Ceilings
from allotrope.ops import registry
from allotrope.ops.contract import Cost
from allotrope.runtime.buffers import token_bytes


@dataclass(frozen=True)
class Limit:
    """What a load's steps must move and compute, and the least time for that (None: no ceilings are kept)."""

    bytes: float
    flops: float
    seconds: float | None


def limit(plan: Plan, steps: Sequence[Step], ceilings: Ceilings | None) -> Limit:
    """The sum over steps; each step's floor is the longer of reading and computing."""
    prices = _Prices(plan)
    costs = [prices.of(step) for step in steps]
    seconds = None
    if ceilings is not None:
        seconds = math.fsum(_floor(ceilings, cost, integer, plan.dtype) for cost, integer in costs)
    return Limit(math.fsum(cost.bytes for cost, _ in costs), math.fsum(cost.flops for cost, _ in costs), seconds)


def _floor(ceilings: Ceilings, cost: Cost, integer: float, dtype: str) -> float:
    """The longer of reading and computing, of which `integer` operations are among codes."""
    computing = ceilings.floor_s(0, cost.flops - integer, dtype) + ceilings.floor_s(0, integer, INT8)
    return max(ceilings.floor_s(cost.bytes, 0, dtype, held=cost.bytes), computing)


@dataclass
class _Prices:
    """What a plan's step costs, by its row counts; worked out once per plan."""

    plan: Plan
    _weights: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in (TOKENS, LOGITS, SAMPLES)})
    _flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys((TOKENS, LOGITS, SAMPLES), 0.0))
    _integer: dict[str, float] = field(default_factory=lambda: dict.fromkeys((TOKENS, LOGITS, SAMPLES), 0.0))
    _attention: list[Call] = field(default_factory=list)
    _seen: dict[tuple[int, int], Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for call in self.plan.calls:
            if call.op == "attention":
                self._attention.append(call)
                continue
            kind = rows_kind(self.plan, call)
            cost = registry.contract(call.op).cost(problem(self.plan, call, Load(rows=1)))
            self._flops[kind] += cost.flops  # every op but attention does the same for each row
            if call.params.get("activations") == INT8:
                self._integer[kind] += cost.flops
            names = {plans.name(slot) for slot in call.ins.values() if plans.kind(slot) == "w"}
            if cost.bytes >= sum(map(self._size, names)):  # else it looks rows up
                self._weights[kind] |= names

    def of(self, step: Step) -> tuple[Cost, float]:
        """The least that a step moves and computes, and how much of the computing is among integers."""
        rows = {TOKENS: int(step.counts.sum()), LOGITS: step.logits, SAMPLES: step.samples}
        read = set[str]().union(*(self._weights[kind] for kind, count in rows.items() if count))
        moved = float(sum(map(self._size, read)))
        flops = sum(count * self._flops[kind] for kind, count in rows.items())
        pairs, times = np.unique(np.stack([step.counts, step.ends]), axis=1, return_counts=True)
        for own, end, count in zip(*pairs.tolist(), times.tolist(), strict=True):
            cost = self._request(own, end)
            moved, flops = moved + count * cost.bytes, flops + count * cost.flops
        return Cost(moved, flops), sum(count * self._integer[kind] for kind, count in rows.items())

    def _request(self, own: int, end: int) -> Cost:
        """Attention over all layers, of a request's `own` tokens up to position `end`."""
        if (own, end) not in self._seen:
            moved = flops = 0.0
            for call in self._attention:
                posed = problem(self.plan, call, Load(rows=own, requests=1, context=end))
                window = int(posed.params["window"])
                keys = min(end, window + own - 1) if window else end
                moved += keys * token_bytes(self.plan, str(posed.params["kv"]))
                flops += registry.contract(call.op).cost(posed).flops
            self._seen[own, end] = Cost(moved, flops)
        return self._seen[own, end]

    def _size(self, name: str) -> int:
        weight = self.plan.weights[name]
        item = np.dtype(layout.STORED[layout.stored_dtype(self.plan, weight)][1]).itemsize
        return math.prod(layout.packed_shape(weight)) * item
