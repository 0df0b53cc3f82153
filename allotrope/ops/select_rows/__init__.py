"""Selecting rows: row i of the output is row `index[i]` of x, bit for bit. Rows may repeat."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The selected rows read and written, and the index."""
    rows, size = problem.axes["rows"], ELEMENT_BYTES[problem.dtype]
    return Cost(bytes=rows * (2 * problem.axes["width"] * size + 8), flops=0)


CONTRACT = Contract(
    name="select_rows",
    ins={
        "x": Operand(("tokens", "width")),
        "index": Operand(("rows",), Role.STEP, "int64"),
    },
    outs={"out": Operand(("rows", "width"))},
    cost=_cost,
    exact=True,
)
