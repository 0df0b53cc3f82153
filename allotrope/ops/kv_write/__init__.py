"""Writes a step's keys and values into the paged caches: row i to page slots[i] // page_size, at slots[i] % page_size.

Slots are distinct. Nothing else in the caches is read or written. `pages` is at least what the rows need. The caches'
rows are of the form `kv` (`ops.kv_rows`), which is narrower than the keys and values where that is asked for.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role
from allotrope.ops.kv_rows import COMPUTE, item_bytes


def _cost(problem: Problem) -> Cost:
    """k and v read and written once, one slot number per row."""
    axes = problem.axes
    read = axes["kv_width"] * ELEMENT_BYTES[problem.dtype]
    written = axes["cache_width"] * item_bytes(str(problem.params.get("kv", COMPUTE)), problem.dtype)
    return Cost(bytes=axes["rows"] * (2 * (read + written) + 8), flops=0)


_CACHE = Operand(("pages", "page_size", "cache_width"), Role.CACHE, inout=True)

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
    params={"kv": COMPUTE, "kv_heads": 1},
    cost=_cost,
    exact=True,
)
