"""Learned positions: each row plus the table's row for its position, `positions[i] + offset`."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """Per row: x and one row of the table read, one row written, and the position."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    return Cost(bytes=rows * (3 * width * ELEMENT_BYTES[problem.dtype] + 8), flops=rows * width)


CONTRACT = Contract(
    name="add_positions",
    ins={
        "x": Operand(("rows", "width")),
        "table": Operand(("size", "width"), Role.WEIGHT),
        "positions": Operand(("rows",), Role.STEP, "int64"),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"offset": 0},
    cost=_cost,
)
