"""A plan whose keys and values, all or some layers', are kept in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from allotrope.artifact.plan import Call, Plan, name
from allotrope.errors import UsageError
from allotrope.ops.contract import Scalar
from allotrope.ops.kv_rows import FORMS


def with_cache(plan: Plan, forms: str | Sequence[str]) -> Plan:
    """`plan` with its caches in this form, or in one for each layer; each call that writes or reads them is told."""
    wanted = (forms,) * plan.cache.layers if isinstance(forms, str) else tuple(forms)
    for form in wanted:
        if form not in FORMS:
            raise UsageError(f"the KV format is {form!r}", remedy=f"choose one of {', '.join(FORMS)}")
    if len(wanted) != plan.cache.layers:
        raise ValueError(f"{len(wanted)} KV formats for {plan.cache.layers} layers")
    cache, before = replace(plan.cache, dtypes=wanted), plan.cache.slots

    def changed(call: Call) -> Call:
        slot = name(call.ins.get("k_cache", ""))
        if not slot or cache.slots[slot] == before[slot]:
            return call
        told: dict[str, Scalar] = {"kv": cache.slots[slot]}
        if call.op == "kv_write":
            told["kv_heads"] = cache.kv_heads
        return replace(call, params={**call.params, **told})

    return replace(plan, cache=cache, calls=tuple(changed(call) for call in plan.calls))
