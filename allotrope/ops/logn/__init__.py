"""Log-n attention: queries beyond the training length grow, x · ln(p + 1) / ln(length) where p + 1 > length."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """x read, the result written, one position per row."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    return Cost(bytes=rows * (2 * width * ELEMENT_BYTES[problem.dtype] + 8), flops=rows * width)


CONTRACT = Contract(
    name="logn",
    ins={"x": Operand(("rows", "width")), "positions": Operand(("rows",), Role.STEP, "int64")},
    outs={"out": Operand(("rows", "width"))},
    params={"length": None},
    cost=_cost,
)
