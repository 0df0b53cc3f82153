"""From a plan's call to the concrete problem that it poses at a given size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.errors import EngineError
from allotrope.ops import registry
from allotrope.ops.contract import Contract, Operand, Problem


@dataclass(frozen=True)
class Load:
    """How much a step computes: what the axes that no weight fixes are resolved from.

    `context` is the longest request's length after the step; `requests` share the step's tokens evenly
    where an op cares.
    """

    rows: int  # of the call in question, whatever its rows are
    requests: int = 1
    context: int = 1
    page_size: int = 16
    pages: int = 0  # in the pool; 0: just what the requests need

    @property
    def max_pages(self) -> int:
        """Pages that the longest request needs."""
        return max(1, math.ceil(self.context / self.page_size))

    def sizes(self) -> dict[str, int]:
        """Sizes by axis name. Whatever counts rows of any kind has as many as the call."""
        return {
            "rows": self.rows,
            TOKENS: self.rows,
            LOGITS: self.rows,
            SAMPLES: self.rows,
            "unit": 1,
            "requests": self.requests,
            "requests_1": self.requests + 1,
            "adjustments": self.rows,  # one logit changed per row that is drawn, say
            "context": self.context,
            "max_pages": self.max_pages,
            "page_size": self.page_size,
            "pages": self.pages or self.requests * self.max_pages,
        }


def problem(plan: Plan, call: Call, load: Load) -> Problem:
    """The problem that `call` poses under `load`. Contradictory sizes are an EngineError that names the call."""
    contract = registry.contract(call.op)
    sizes = load.sizes()
    axes: dict[str, int] = {}
    for axis, size in _named_sizes(plan, call, contract, sizes):
        if axes.setdefault(axis, size) != size:
            raise EngineError(f"axis {axis} of op {call.op} is both {axes[axis]} and {size}", where=call.path)
    if "requests" in axes:  # where requests are told apart, so is how long the longest is
        axes["context"] = load.context
    optional = {name for name, operand in contract.ins.items() if operand.optional}
    return Problem(call.op, axes, contract.complete(call.params), plan.dtype, frozenset(optional & set(call.ins)))


def _named_sizes(plan: Plan, call: Call, contract: Contract, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Every axis of every operand that the call has, with its size."""
    for operands, slots in ((contract.ins, call.ins), (contract.outs, call.outs)):
        for name, slot in slots.items():
            operand = operands[name]
            shape = _shape(plan, slot, operand, sizes)
            if len(shape) != len(operand.axes):
                raise EngineError(f"operand {name} of op {call.op} has {len(shape)} axes", where=call.path)
            yield from ((axis, size) for axis, size in zip(operand.axes, shape, strict=True) if size)


def _shape(plan: Plan, slot: str, operand: Operand, sizes: Mapping[str, int]) -> tuple[int, ...]:
    kind, name = plans.kind(slot), plans.name(slot)
    if kind == "b":
        return sizes["rows"], plan.buffers[name].width
    if kind == "w":
        parts = [shape for _, shape in plan.weights[name].parts]
        return sum(shape[0] for shape in parts), *parts[0][1:]
    if kind == "c":
        return sizes["pages"], sizes["page_size"], plan.cache.row_width(plan.cache.slots[name])
    return tuple(sizes.get(axis, 0) for axis in operand.axes)  # 0: another operand says
