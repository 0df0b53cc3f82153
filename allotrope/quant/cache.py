"""A plan whose keys and values are kept in eight bits."""

from __future__ import annotations

from dataclasses import replace

from allotrope.artifact.plan import Call, Plan
from allotrope.errors import UsageError
from allotrope.ops.contract import Scalar
from allotrope.ops.kv_rows import FORMS


def with_cache(plan: Plan, form: str) -> Plan:
    """`plan` with its caches in this form, of which every call that writes or reads them is told."""
    if form not in FORMS:
        raise UsageError(f"the KV format is {form!r}", remedy=f"choose one of {', '.join(FORMS)}")
    if form == plan.cache.dtype:
        return plan
    told: dict[str, dict[str, Scalar]] = {
        "kv_write": {"kv": form, "kv_heads": plan.cache.kv_heads},
        "attention": {"kv": form},
    }

    def changed(call: Call) -> Call:
        return replace(call, params={**call.params, **told[call.op]}) if call.op in told else call

    cache = replace(plan.cache, dtype=form)
    return replace(plan, cache=cache, calls=tuple(changed(call) for call in plan.calls))
