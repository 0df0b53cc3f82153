"""The middle of a gated MLP: act(gate) · up. `kind` is that of the op activation."""

from __future__ import annotations

from allotrope.ops.activation import FLOPS
from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem


def _cost(problem: Problem) -> Cost:
    """Two read, one written."""
    elements = problem.axes["rows"] * problem.axes["width"]
    flops = FLOPS.get(str(problem.params.get("kind")), 0) + 1
    return Cost(bytes=3 * elements * ELEMENT_BYTES[problem.dtype], flops=flops * elements)


CONTRACT = Contract(
    name="gated",
    ins={"gate": Operand(("rows", "width")), "up": Operand(("rows", "width"))},
    outs={"out": Operand(("rows", "width"))},
    params={"kind": None},
    cost=_cost,
)
