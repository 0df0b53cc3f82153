"""What tests of the native core share: a skip where there is none, and engines whose every call is the core's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from allotrope import native
from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Plan
from allotrope.models.recipe import Recipe
from allotrope.ops import registry
from allotrope.runtime.native import NativeExecutor
from tests.engines import CPU, MemoryEngine, plan_of, random_weights

needs_core = pytest.mark.skipif(native.find().core is None, reason=native.find().why)


def natively(plan: Plan) -> Plan:
    """The plan with every call the core's, and weights packed as its tactics read them."""
    weights, calls = dict(plan.weights), []
    for call in reversed(plan.calls):  # a tied head comes before the embedding, which follows it
        tied = call.op == "embed" and weights[plans.name(call.ins["table"])].packing == "panels"
        name = "native_panels" if tied else "native"
        for operand, packing in registry.tactic(call.op, name).packings().items():
            if operand in call.ins:
                slot = plans.name(call.ins[operand])
                weights[slot] = replace(weights[slot], packing=packing)
        calls.append(replace(call, tactics=((None, name),)))
    return replace(plan, calls=tuple(calls[::-1]), weights=weights)


def native_engine(recipe: Recipe, seed: int = 0) -> MemoryEngine:
    return MemoryEngine(natively(plan_of(recipe)), random_weights(recipe, seed))


def native_executor(engine: Any, **options: Any) -> NativeExecutor:
    settings: dict[str, Any] = {"pages": 64, "page_size": 4, "max_tokens": 16, "max_requests": 4, "poison": True}
    return NativeExecutor(engine, device=CPU, **({"threads": 1} | settings | options))
