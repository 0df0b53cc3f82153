"""Causal attention over the paged cache, with grouped queries and an optional sliding window.

Row `row_starts[r] + j` is request r's query at position p = `row_first[r]` + j. It sees keys 0..p, or with a
window the last `window` of them, itself included. Keys and values are read only from the caches, the
row's own included: key i of request r lies in page `page_table[r, i // page_size]` at `i % page_size`.

A problem's axes: `rows` (queries in all), `requests`, `context` (keys of the longest request when the step is
done), `page_size`, `width` (heads · head_dim) and `cache_width` (of a row of the caches, which is of the form `kv`,
see `ops.kv_rows`). `requests_1` (requests + 1), `pages` and `max_pages` name the shapes of operands; the input maker
makes as many pages as it needs.
A tactic that plans on the device takes the width of the page table for its bound on the context.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES, Contract, Cost, Operand, Problem, Role
from allotrope.ops.kv_rows import COMPUTE, item_bytes


def _cost(problem: Problem) -> Cost:
    """Each request's visible keys and values once, queries in and result out."""
    axes, window = problem.axes, int(problem.params.get("window", 0))
    rows, requests, context, width = axes["rows"], axes["requests"], axes["context"], axes["width"]
    own = rows / requests  # queries of one request; the last of them sees the whole context
    keys, seen = float(context), context - (own - 1) / 2
    if window:
        keys, seen = min(keys, window + own - 1), min(seen, window)
    row = axes["cache_width"] * item_bytes(str(problem.params.get("kv", COMPUTE)), problem.dtype)
    moved = 2 * requests * keys * row + 2 * rows * width * ELEMENT_BYTES[problem.dtype]
    return Cost(bytes=moved, flops=4 * rows * seen * width)


CONTRACT = Contract(
    name="attention",
    ins={
        "q": Operand(("rows", "width")),
        "k_cache": Operand(("pages", "page_size", "cache_width"), Role.CACHE),
        "v_cache": Operand(("pages", "page_size", "cache_width"), Role.CACHE),
        "row_starts": Operand(("requests_1",), Role.STEP, "int32"),
        "row_first": Operand(("requests",), Role.STEP, "int32"),
        "page_table": Operand(("requests", "max_pages"), Role.STEP, "int32"),
        "spans": Operand((), Role.HOST, "spans"),
        "memo": Operand((), Role.HOST, "memo", optional=True),
    },
    outs={"out": Operand(("rows", "width"))},
    params={"heads": None, "kv_heads": None, "head_dim": None, "scale": None, "window": 0, "kv": COMPUTE},
    cost=_cost,
)
