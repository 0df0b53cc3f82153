"""In what an engine stores and multiplies its weights: like is to be compared with like."""

from __future__ import annotations

import math
from collections import Counter

from allotrope.artifact.layout import stored_dtype
from allotrope.artifact.plan import Plan, kind, name
from allotrope.ops.kv_rows import COMPUTE

_BITS = {"int8": "8", "fp8": "8", "int4": "4", "fp16": "16", "bf16": "16", "fp32": "fp32", "fp64": "fp32"}
_LINEAR = "linear"


def formats(plan: Plan) -> dict[str, str]:
    """What most multiplied weights are stored in, what they meet, and what keys and values are kept in."""
    counted = Counter[tuple[str, str]]()
    for call in plan.calls:
        if not call.op.startswith(_LINEAR):
            continue
        operand = call.ins.get("codes") or call.ins.get("weight")
        if operand is None or kind(operand) != "w":
            continue
        weight = plan.weights[name(operand)]
        form = str(call.params.get("format") or stored_dtype(plan, weight))
        activations = str(call.params.get("activations", "none"))
        size = sum(math.prod(shape) for _, shape in weight.parts) * (2 if form == "int4" else 1)
        counted[form, plan.dtype if activations == "none" else activations] += size
    (form, activations), _ = counted.most_common(1)[0] if counted else ((plan.dtype, plan.dtype), 0)
    kept = plan.dtype if plan.cache.words == COMPUTE else plan.cache.words
    return {"weights": form, "activations": activations, "kv": kept}


def precision(form: str) -> str:
    """The bits of a weight, as peers are asked for."""
    return _BITS[form]
