"""LayerNorm over each row: (x − mean) / sqrt(variance + eps), times weight, plus bias, where they are there."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """x read, the result written, weight and bias once; two moments, then scale and shift."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    vectors = len(problem.present & {"weight", "bias"})
    elements = (2 * rows + vectors) * width
    return Cost(bytes=elements * ELEMENT_BYTES[problem.dtype], flops=(5 + vectors) * rows * width)


CONTRACT = Contract(
    name="layernorm",
    ins={
        "x": Operand(("rows", "width")),
        "weight": Operand(("width",), Role.WEIGHT, optional=True),
        "bias": Operand(("width",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"eps": None},
    cost=_cost,
)
