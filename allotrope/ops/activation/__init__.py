"""An activation function, element by element. `kind` is gelu (exact), gelu_tanh, relu or silu."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem

FLOPS = {"gelu": 20, "gelu_tanh": 20, "relu": 1, "silu": 12}
"""Per element, with a polynomial for the exponential, the error function or the hyperbolic tangent."""


def _cost(problem: Problem) -> Cost:
    """One read, one written."""
    elements = problem.axes["rows"] * problem.axes["width"]
    flops = FLOPS.get(str(problem.params.get("kind")), 0)
    return Cost(bytes=2 * elements * ELEMENT_BYTES[problem.dtype], flops=flops * elements)


CONTRACT = Contract(
    name="activation",
    ins={"x": Operand(("rows", "width"))},
    outs={"out": Operand(("rows", "width"))},
    params={"kind": None},
    cost=_cost,
)
