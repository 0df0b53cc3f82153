"""A linear layer whose weight is stored in 16 bits and computed with in the compute dtype: x · weightᵀ, plus bias.

What rounding the weight to 16 bits costs is judged by models. Here the stored weight is the truth.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role

STORES = ("fp16", "bf16")


def _cost(problem: Problem) -> Cost:
    """The weight once in its 16 bits, however many rows there are; inputs and outputs once, in the compute dtype."""
    rows, into, out = (problem.axes[name] for name in ("rows", "in", "out"))
    bias = out if "bias" in problem.present else 0
    moved = into * out * 2 + (bias + rows * (into + out)) * ELEMENT_BYTES[problem.dtype]
    return Cost(bytes=moved, flops=rows * (2 * into * out + bias))


CONTRACT = Contract(
    name="linear_stored",
    ins={
        "x": Operand(("rows", "in")),
        "weight": Operand(("out", "in"), Role.WEIGHT, "stored"),
        "bias": Operand(("out",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "out"))},
    params={"store": None},
    cost=_cost,
)
