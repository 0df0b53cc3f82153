"""Embedding from a table in few bits (`ops.codes`), as a head tied to it has: row i is row `ids[i]`, decoded."""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role
from allotrope.ops.linear_codes import SCALE_BYTES


def _cost(problem: Problem) -> Cost:
    """The rows read and written, and the ids. How large the table is does not matter."""
    axes = problem.axes
    scales = axes["groups"] * (SCALE_BYTES.get(axes["groups"], 2) + ("zeros" in problem.present))
    moved = axes["packed"] + scales + axes["width"] * ELEMENT_BYTES[problem.dtype] + 8
    return Cost(bytes=axes["rows"] * moved, flops=axes["rows"] * axes["width"])


CONTRACT = Contract(
    name="embed_codes",
    ins={
        "ids": Operand(("rows",), Role.STEP, "int64"),
        "codes": Operand(("vocab", "packed"), Role.WEIGHT, "uint8"),
        "scales": Operand(("vocab", "groups"), Role.WEIGHT, "stored"),
        "zeros": Operand(("vocab", "groups"), Role.WEIGHT, "uint8", optional=True),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"format": None},
    cost=_cost,
)
