"""A linear layer and the activation of its result: act(x · weightᵀ, plus bias where it is there)."""

from __future__ import annotations

from allotrope.ops.activation import FLOPS
from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """The weight once, however many rows there are; inputs and outputs once."""
    rows, into, out = (problem.axes[name] for name in ("rows", "in", "out"))
    bias = out if "bias" in problem.present else 0
    elements = into * out + bias + rows * (into + out)
    flops = rows * (2 * into * out + bias + out * FLOPS.get(str(problem.params.get("kind")), 0))
    return Cost(bytes=elements * ELEMENT_BYTES[problem.dtype], flops=flops)


CONTRACT = Contract(
    name="linear_activation",
    ins={
        "x": Operand(("rows", "in")),
        "weight": Operand(("out", "in"), Role.WEIGHT),
        "bias": Operand(("out",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "out"))},
    params={"kind": None},
    cost=_cost,
)
