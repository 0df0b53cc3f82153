"""Embedding from a table stored in 16 bits, such as a head's that is tied to it: row i is row `ids[i]`, widened."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The rows read and written, and the ids. How large the table is does not matter."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    return Cost(bytes=rows * (width * (2 + ELEMENT_BYTES[problem.dtype]) + 8), flops=0)


CONTRACT = Contract(
    name="embed_stored",
    ins={
        "ids": Operand(("rows",), Role.STEP, "int64"),
        "table": Operand(("vocab", "width"), Role.WEIGHT, "stored"),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"store": None},
    cost=_cost,
)
