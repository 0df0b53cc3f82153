"""What the native linear layers have in common: how their weights lie, and what their scratch memory depends on."""

from __future__ import annotations

from allotrope.ops.contract import Problem

PANELS = {"weight": "panels", "bias": "rows"}


def sizes(problem: Problem) -> tuple[int, ...]:
    """As `product_workspace` in `native/core/product.h` reads them."""
    return problem.axes["rows"], problem.axes["in"]


def coded_sizes(problem: Problem) -> tuple[int, ...]:
    """As `codes_workspace` in `native/core/codes.h` reads them."""
    return *sizes(problem), problem.axes["groups"]
