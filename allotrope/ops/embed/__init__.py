"""Embedding: row i of the output is row `ids[i]` of the table, bit for bit."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The rows read and written, and the ids. How large the table is does not matter."""
    rows, size = problem.axes["rows"], ELEMENT_BYTES[problem.dtype]
    return Cost(bytes=rows * (2 * problem.axes["width"] * size + 8), flops=0)


CONTRACT = Contract(
    name="embed",
    ins={
        "ids": Operand(("rows",), Role.STEP, "int64"),
        "table": Operand(("vocab", "width"), Role.WEIGHT),
    },
    outs={"out": Operand(("rows", "width"))},
    cost=_cost,
    exact=True,
)
