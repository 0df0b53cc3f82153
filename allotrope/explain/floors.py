"""The least time that each call of a step could take here, whatever the tactic.

A weight, or a request's keys and values, comes from memory, or from the cache if a step reads so little that it is
still there from the step before. What one call hands to the next is in a cache at best, so it is counted at the
fastest rate that was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from allotrope.artifact import layout
from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.bench.watch import Step
from allotrope.hw.peaks import Ceilings
from allotrope.ops import registry
from allotrope.runtime.program import rows_of
from allotrope.runtime.step import Seconds


@dataclass(frozen=True)
class Price:
    """What a call must do: bytes that were not touched since the last step, other bytes, arithmetic."""

    cold: float = 0.0
    warm: float = 0.0
    flops: float = 0.0
    rate: str = ""  # which kind of arithmetic

    def __add__(self, other: Price) -> Price:
        return Price(self.cold + other.cold, self.warm + other.warm, self.flops + other.flops, other.rate)

    def times(self, count: int) -> Price:
        """So many of the same."""
        return Price(self.cold * count, self.warm * count, self.flops * count, self.rate)


@dataclass
class Floors:
    """Prices a plan's calls; what was worked out once is kept."""

    plan: Plan
    ceilings: Ceilings
    _rows: list[str] = field(default_factory=list)
    _known: dict[tuple[int, int, int], Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = [rows_of(self.plan, call) for call in self.plan.calls]

    def prices(self, step: Step) -> list[Price]:
        """Per call of the plan."""
        rows = {TOKENS: int(step.counts.sum()), LOGITS: step.logits, SAMPLES: step.samples}
        pairs, times = np.unique(np.stack([step.counts, step.ends]), axis=1, return_counts=True)
        requests = list(zip(*pairs.tolist(), times.tolist(), strict=True))
        found = []
        for place, call in enumerate(self.plan.calls):
            if call.op == "attention":  # what a request costs depends on how long it is
                each = (self._price(place, own, end).times(count) for own, end, count in requests)
                found.append(sum(each, Price()))
            else:
                found.append(self._price(place, rows[self._rows[place]], 1))
        return found

    def of(self, step: Step) -> Seconds:
        """The least time of each call."""
        prices = self.prices(step)
        held = sum(price.cold for price in prices)
        return np.array([self.seconds(price, held) for price in prices])

    def seconds(self, price: Price, held: float) -> float:
        """The least time for that, in a step that reads so many cold bytes in all."""
        reading = price.cold / self.ceilings.read_rate(held) + price.warm / self.fastest
        return max(reading, price.flops / self.ceilings.rate(price.rate))

    @property
    def fastest(self) -> float:
        """Bytes per second of what lies in a cache."""
        return max([*self.ceilings.cache_read_bytes_per_s.values(), self.ceilings.read_bytes_per_s])

    def _price(self, place: int, rows: int, context: int) -> Price:
        key = (place, rows, context)
        if key not in self._known:
            self._known[key] = priced(self.plan, self.plan.calls[place], rows, context) if rows else Price()
        return self._known[key]


def priced(plan: Plan, call: Call, rows: int, context: int) -> Price:
    """What a call must do for these rows: of one request where that matters, as long as `context` after the step."""
    posed = problem(plan, call, Load(rows, 1 if call.op == "attention" else rows, context))
    cost = registry.contract(call.op).cost(posed)
    names = dict.fromkeys(plans.name(slot) for slot in call.ins.values() if plans.kind(slot) == "w")
    weights = float(sum(weight_bytes(plan, name) for name in names))
    cold = min(weights, cost.bytes)  # of a table only the rows that are looked up
    if call.op == "attention":
        cold = cost.bytes - 2 * rows * posed.axes["width"] * _item(plan.dtype)
    return Price(cold, cost.bytes - cold, cost.flops, str(call.params.get("activations") or plan.dtype))


def weight_bytes(plan: Plan, name: str) -> int:
    """Of a packed weight."""
    weight = plan.weights[name]
    return math.prod(layout.packed_shape(weight)) * _item(layout.stored_dtype(plan, weight))


def _item(dtype: str) -> int:
    return int(np.dtype(layout.STORED[dtype][1]).itemsize)
