"""A linear layer whose weight is stored in few bits (`ops.codes`): x · decoded weightᵀ, plus bias where it is there.

What the narrow format costs is judged by models. Here the decoded weight is the truth, so that a kernel's mistakes
cannot hide behind it.

With `activations` int8 or fp8, x becomes codes too, a scale per row, by `ops.rows.quantise_rows`; the codes that come
out, and their scale, are then the truth for x.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role

FORMATS = ("int8", "int4", "fp8")
ACTIVATIONS = ("none", "int8", "fp8")  # none: they stay wide
PER_BYTE = {"int8": 1, "int4": 2, "fp8": 1}  # codes
SCALE_BYTES = {1: 4}  # one scale per row is fp32, several are fp16


def _cost(problem: Problem) -> Cost:
    """Codes, scales and zeros once, however many rows there are; inputs and outputs once, in the compute dtype."""
    axes, size = problem.axes, ELEMENT_BYTES[problem.dtype]
    rows, into, out, groups = (axes[name] for name in ("rows", "in", "out", "groups"))
    scales = out * groups * (SCALE_BYTES.get(groups, 2) + ("zeros" in problem.present))
    bias = out if "bias" in problem.present else 0
    moved = out * axes["packed"] + scales + (bias + rows * (into + out)) * size
    return Cost(bytes=moved, flops=rows * (2 * into * out + bias))


CONTRACT = Contract(
    name="linear_codes",
    ins={
        "x": Operand(("rows", "in")),
        "codes": Operand(("out", "packed"), Role.WEIGHT, "uint8"),
        "scales": Operand(("out", "groups"), Role.WEIGHT, "stored"),
        "zeros": Operand(("out", "groups"), Role.WEIGHT, "uint8", optional=True),
        "bias": Operand(("out",), Role.WEIGHT, optional=True),
    },
    outs={"out": Operand(("rows", "out"))},
    params={"format": None, "activations": "none"},
    cost=_cost,
)
