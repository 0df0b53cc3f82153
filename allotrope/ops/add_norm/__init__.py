"""The residual sum and the norm behind it: out = residual + x, normed = norm(out), where `norm` is layer or rms.

`out` may be `residual`'s own memory, and in a plan it is.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role

NORMS = ("layer", "rms")


def _cost(problem: Problem) -> Cost:
    """Two read, two written, weight and bias once."""
    rows, width = problem.axes["rows"], problem.axes["width"]
    vectors = len(problem.present & {"weight", "bias"})
    return Cost(bytes=(4 * rows + vectors) * width * ELEMENT_BYTES[problem.dtype], flops=(6 + vectors) * rows * width)


CONTRACT = Contract(
    name="add_norm",
    ins={
        "x": Operand(("rows", "width")),
        "residual": Operand(("rows", "width")),
        "weight": Operand(("width",), Role.WEIGHT, optional=True),
        "bias": Operand(("width",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "width")), "normed": Operand(("rows", "width"))},
    params={"norm": None, "eps": None},
    cost=_cost,
    in_place={"out": "residual"},
)
