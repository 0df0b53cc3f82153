"""A linear layer and the residual connection behind it: residual + (x · weightᵀ, plus bias where it is there).

`out` may be `residual`'s own memory, and in a plan it is: the residual stream then stays where it lies.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The weight once, however many rows there are; inputs and outputs once."""
    rows, into, out = (problem.axes[name] for name in ("rows", "in", "out"))
    bias = out if "bias" in problem.present else 0
    elements = into * out + bias + rows * (into + 2 * out)
    return Cost(bytes=elements * ELEMENT_BYTES[problem.dtype], flops=rows * (2 * into * out + out + bias))


CONTRACT = Contract(
    name="linear_add",
    ins={
        "x": Operand(("rows", "in")),
        "weight": Operand(("out", "in"), Role.WEIGHT),
        "bias": Operand(("out",), Role.WEIGHT, optional=True),
        "residual": Operand(("rows", "out")),
    },
    outs={"out": Operand(("rows", "out"))},
    cost=_cost,
    in_place={"out": "residual"},
)
