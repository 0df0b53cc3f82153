"""Writes a step's keys and values into the paged caches: row i to page slots[i] // page_size, at slots[i] % page_size.

Slots are distinct. Nothing else in the caches is read or written. `pages` is at least what the rows need.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role


def _cost(problem: Problem) -> Cost:
    """k and v read and written once, one slot number per row."""
    rows, width = problem.axes["rows"], problem.axes["kv_width"]
    return Cost(bytes=rows * (4 * width * ELEMENT_BYTES[problem.dtype] + 8), flops=0)


_CACHE = Operand(("pages", "page_size", "kv_width"), Role.CACHE, inout=True)

CONTRACT = Contract(
    name="kv_write",
    ins={
        "k": Operand(("rows", "kv_width")),
        "v": Operand(("rows", "kv_width")),
        "slots": Operand(("rows",), Role.STEP, "int64"),
        "k_cache": _CACHE,
        "v_cache": _CACHE,
    },
    outs={"k_cache": _CACHE, "v_cache": _CACHE},
    cost=_cost,
    exact=True,
)
