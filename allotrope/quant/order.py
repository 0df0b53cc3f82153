"""The plan in which weights in act-order find their inputs: their columns lie group by group, their inputs' do not.

    q = linear_codes(x, Wq)      becomes      y = reorder(x, order);  q = linear_codes(y, Wq)

Layers that read the same input in the same order share what was put in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Buffer, Call, Plan, Weight

Orders = Mapping[str, np.ndarray[Any, Any]]


def first_of_each(plan: Plan, orders: Orders) -> dict[str, str]:
    """For each path in `orders`: the first that reads the same input in the same order."""
    found: dict[str, str] = {}
    seen: list[tuple[str, str]] = []  # of this block: a path with an order of its own, and its input
    block = ""
    for call in plan.calls:
        if call.path not in orders:
            continue
        here = re.sub(r"^(blocks\.\d+)\..*", r"\1", call.path)
        if here != block:  # another block computes its inputs anew, in the same buffers
            block, seen = here, []
        same = (path for path, x in seen if x == call.ins["x"] and np.array_equal(orders[path], orders[call.path]))
        found[call.path] = next(same, call.path)
        if found[call.path] == call.path:
            seen.append((call.path, call.ins["x"]))
    return found


def reorder(plan: Plan, firsts: Mapping[str, str]) -> Plan:
    """The plan with a call `PATH.order` before each path that is its own first, and its output read by the others."""
    buffers, weights, calls = dict(plan.buffers), dict(plan.weights), list[Call]()
    for call in plan.calls:
        first = firsts.get(call.path)
        if first is None:
            calls.append(call)
            continue
        # one buffer for the same place in all blocks, and never one for two orders
        name = re.sub(r"^blocks\.\d+\.", "", first) + ".ordered"
        if first == call.path:
            x = plan.buffers[plans.name(call.ins["x"])]
            buffers.setdefault(name, Buffer(x.rows, x.width))
            weights[f"{first}.order"] = Weight(((f"{first}.order", (x.width,)),), dtype="int32")
            ins = {"x": call.ins["x"], "order": f"w:{first}.order"}
            calls.append(Call(f"{first}.order", "reorder", ins, {"out": f"b:{name}"}))
        calls.append(replace(call, ins={**call.ins, "x": f"b:{name}"}))
    return replace(plan, buffers=buffers, weights=weights, calls=tuple(calls))
