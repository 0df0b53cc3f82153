"""RMSNorm: x / sqrt(mean(x²) + eps), times weight where it is there, over each of `heads` equal parts of a row.

`heads` = 1 normalises the whole row; a weight has the width of one part and serves them all.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """x read, the result written, the weight once; a square, a sum, a scale and the weight per element."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    weight = width // int(problem.params.get("heads", 1)) if "weight" in problem.present else 0
    elements = 2 * rows * width + weight
    return Cost(bytes=elements * ELEMENT_BYTES[problem.dtype], flops=(4 if weight else 3) * rows * width)


CONTRACT = Contract(
    name="rmsnorm",
    ins={
        "x": Operand(("rows", "width")),
        "weight": Operand(("head_width",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"eps": None, "heads": 1},
    cost=_cost,
)
