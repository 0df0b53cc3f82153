"""The sum of two activations: the residual connection."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem


def _cost(problem: Problem) -> Cost:
    """Two read, one written."""
    elements = problem.axes["rows"] * problem.axes["width"]
    return Cost(bytes=3 * elements * ELEMENT_BYTES[problem.dtype], flops=elements)


CONTRACT = Contract(
    name="add",
    ins={"a": Operand(("rows", "width")), "b": Operand(("rows", "width"))},
    outs={"out": Operand(("rows", "width"))},
    cost=_cost,
)
