"""In which formats a plan computes and keeps what it keeps."""

from __future__ import annotations

from typing import Any

from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem


def formats(plan: Plan) -> dict[str, Any]:
    """In plain values: of compute, of linear layers, of what they read, of keys and values."""
    layers = [call for call in plan.calls if call.op.startswith("linear")]
    codes = [call for call in layers if "format" in call.params or "store" in call.params]
    acts = {str(call.params["activations"]) for call in codes if call.params.get("activations", "none") != "none"}
    return {
        "dtype": plan.dtype,
        "weights": sorted({_stored(plan, call) for call in codes}) or [plan.dtype],
        "activations": sorted(acts) or [plan.dtype],
        "kv": plan.cache.words,
    }


def _stored(plan: Plan, call: Call) -> str:
    """`int8`, `int4:32` in groups, `fp16`."""
    if "store" in call.params:
        return str(call.params["store"])
    axes = problem(plan, call, Load(1)).axes
    zeros = " asymmetric" if "zeros" in call.ins else ""
    grouped = f":{axes['in'] // axes['groups']}" if axes["groups"] > 1 else ""
    return f"{call.params['format']}{grouped}{zeros}"
