"""Putting columns in another order: column j of the output is column `order[j]` of x, bit for bit.

A weight quantised in act-order has its groups scattered over its inputs; its columns are stored group by group, and
this puts its input's columns beside them.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The rows read and written, and the order."""
    rows, width, size = problem.axes["rows"], problem.axes["width"], ELEMENT_BYTES[problem.dtype]
    return Cost(bytes=2 * rows * width * size + width * ELEMENT_BYTES["int32"], flops=0)


CONTRACT = Contract(
    name="reorder",
    ins={
        "x": Operand(("rows", "width")),
        "order": Operand(("width",), Role.WEIGHT, "int32"),
    },
    outs={"out": Operand(("rows", "width"))},
    cost=_cost,
    exact=True,
)
