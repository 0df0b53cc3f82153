"""Whether a manifest can be true: every size, name and reference in it is checked before anything is made of it."""

from __future__ import annotations

import math
from pathlib import Path

from allotrope.artifact import plan as plans
from allotrope.artifact.dataflow import check_flow
from allotrope.artifact.layout import STORED
from allotrope.artifact.manifest import REBUILD, Manifest
from allotrope.artifact.parameters import check_parameters
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Buffer, Call, Plan, Weight
from allotrope.artifact.problems import Load, problem
from allotrope.errors import AllotropeError, EngineError
from allotrope.ops import registry
from allotrope.ops.kv_rows import COMPUTE, FORMS
from allotrope.ops.packing import PACKINGS

_LARGEST = 2**31 - 1  # of any one axis
_COMPUTE = ("fp32", "fp16", "bf16")
_MOST = {"max_batch": 65_536, "max_len": 2**24}


def check_plan(described: Manifest, where: Path) -> None:
    """An EngineError, naming what cannot be, unless the manifest's plan and limits are sound."""
    plan = described.plan
    try:
        _check_facts(described)
        _check_numbers(described)
        for name, weight in plan.weights.items():
            _check_weight(name, weight)
        for name, buffer in plan.buffers.items():
            _check_buffer(name, buffer, plan)
        for call in plan.calls:
            _check_call(call, described)
        _check_caches(plan)
        check_flow(plan, _need)
    except _Unsound as error:
        raise EngineError(str(error), where=str(where), remedy=REBUILD) from error
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError) as error:
        # Python's own complaint about a value of the wrong type, somewhere in the nested JSON
        raise EngineError(f"the plan has the wrong form ({error})", where=str(where), remedy=REBUILD) from error


class _Unsound(Exception):
    """Never leaves this file."""


def _need(well: bool, problem: str) -> None:
    if not well:
        raise _Unsound(problem)


def _count(value: object, name: str, most: int = _LARGEST) -> None:
    _need(type(value) is int and 0 < value <= most, f"{name} is {value!r}")


def _check_facts(described: Manifest) -> None:
    kind = described.device.get("kind")
    _need(kind in ("cpu", "cuda"), f"built for an unknown device {kind!r}")
    _need(isinstance(described.source.get("path"), str), "source.path is missing")
    for part in ("hard", "soft"):
        facts = described.fingerprint.get(part)
        well = isinstance(facts, dict) and all(isinstance(value, str) for value in facts.values())
        _need(well, f"fingerprint.{part} has the wrong form")


def _check_numbers(described: Manifest) -> None:
    plan = described.plan
    _need(plan.dtype in _COMPUTE, f"compute dtype {plan.dtype!r} is unknown")
    _need(plan.dtype == described.dtype, f"dtype is {described.dtype!r}, the plan's {plan.dtype!r}")
    _count(plan.vocab, "plan.vocab")
    _count(plan.max_len, "plan.max_len", _MOST["max_len"])
    _need(set(described.limits) == set(_MOST), f"limits are {sorted(described.limits)}")
    for name, most in _MOST.items():
        _count(described.limits[name], f"limits.{name}", most)
    _need(described.limits["max_len"] <= plan.max_len, f"limits.max_len exceeds the plan's {plan.max_len}")
    for name in ("layers", "kv_heads", "head_dim"):
        _count(getattr(plan.cache, name), f"plan.cache.{name}", 65_536)
    for form in plan.cache.dtypes:
        _need(form in FORMS, f"KV format {form!r:.60} is unknown")
    _need(plan.hidden in plan.buffers, f"the residual buffer {plan.hidden!r} does not exist")
    given = described.generation
    ends = given.get("eos_token_ids") or []
    _need(isinstance(ends, list), f"generation.eos_token_ids is {ends!r}")
    named = [token for token in (given.get("bos_token_id"), given.get("pad_token_id")) if token is not None]
    for token in (*ends, *named):
        well = type(token) is int and 0 <= token < plan.vocab
        _need(well, f"generation names the token {token!r}, of {plan.vocab}")


def _check_weight(name: str, weight: Weight) -> None:
    _need(weight.packing in PACKINGS, f"weight {name}: packing {weight.packing!r} is unknown")
    _need(weight.dtype == "compute" or weight.dtype in STORED, f"weight {name}: dtype {weight.dtype!r} is unknown")
    _need(len(weight.parts) > 0, f"weight {name} has no parts")
    for slot, shape in weight.parts:
        _need(isinstance(slot, str) and 1 <= len(shape) <= 4, f"weight {name}: part {slot!r} has shape {shape}")
        for size in shape:
            _count(size, f"weight {name}: a size")
        _need(math.prod(shape) <= 2**44, f"weight {name}: part {slot} has shape {shape}")
        _need(shape[1:] == weight.parts[0][1][1:], f"weight {name}: its parts do not fit together")


def _check_buffer(name: str, buffer: Buffer, plan: Plan) -> None:
    _need(buffer.rows in (TOKENS, LOGITS, SAMPLES), f"buffer {name}: rows {buffer.rows!r}")
    _need(buffer.dtype in ("compute", "fp32", "int64"), f"buffer {name}: dtype {buffer.dtype!r}")
    _count(buffer.width, f"buffer {name}: its width")
    if buffer.of is None:
        return
    base = plan.buffers.get(buffer.of)
    _need(base is not None and base.of is None, f"buffer {name} is a part of {buffer.of!r}, which is no whole buffer")
    if base is not None:
        _need(base.rows == buffer.rows and base.dtype == buffer.dtype, f"buffer {name} differs in kind from its whole")
        inside = type(buffer.start) is int and 0 <= buffer.start <= base.width - buffer.width
        _need(inside, f"buffer {name} reaches outside {buffer.of}")


def _check_call(call: Call, described: Manifest) -> None:
    plan = described.plan
    _need(isinstance(call.path, str), f"a call's path is {call.path!r}")
    _need(call.op in registry.names(), f"{call.path}: op {call.op!r} is unknown")
    contract = registry.contract(call.op)
    mandatory = {name for name, operand in contract.ins.items() if not operand.optional}
    given = set(call.ins)
    _need(mandatory <= given <= set(contract.ins), f"{call.path}: operands {sorted(given)} do not fit op {call.op}")
    _need(set(call.outs) == set(contract.outs), f"{call.path}: outputs {sorted(call.outs)} do not fit op {call.op}")
    known = {"w": plan.weights, "b": plan.buffers, "c": plan.cache.slots}
    for operand, slot in (*call.ins.items(), *call.outs.items()):
        kind, name = plans.kind(slot), plans.name(slot)
        _need(kind in "wbsc" and len(kind) == 1, f"{call.path}: {operand} is in slot {slot!r}")
        _need(kind not in known or name in known[kind], f"{call.path}: slot {slot!r} does not exist")
    bounds = [bound for bound, _ in call.tactics]
    whole = [bound for bound in bounds[:-1] if type(bound) is int and bound > 0]
    _need(bounds[-1:] == [None] and len(whole) == len(bounds) - 1, f"{call.path}: row bounds {bounds}")
    _need(whole == sorted(set(whole)), f"{call.path}: row bounds {bounds}")
    for _, tactic in call.tactics:
        _need(f"{call.op}/{tactic}" in described.tactics, f"{call.path}: tactic {tactic!r} has no recorded version")
    try:
        posed = problem(plan, call, Load(rows=1))
    except (AllotropeError, KeyError) as error:
        raise _Unsound(str(error)) from error
    check_parameters(call.path, posed, plan, _need)


def _check_caches(plan: Plan) -> None:
    used = {plans.name(slot) for call in plan.calls for slot in call.ins.values() if plans.kind(slot) == "c"}
    forms = plan.cache.slots
    _need(used == set(forms), f"the plan uses {len(used)} caches, {plan.cache.layers} layers have {len(forms)}")
    for call in plan.calls:
        if call.op in ("kv_write", "attention"):
            params = registry.contract(call.op).complete(call.params)
            form = forms[plans.name(call.ins["k_cache"])]
            known = {"kv": form, "kv_heads": plan.cache.kv_heads, "head_dim": plan.cache.head_dim}
            if call.op == "kv_write" and form == COMPUTE:
                known.pop("kv_heads")  # rows are moved as they are
            for name, value in known.items():
                wrong = f"{call.path}: parameter {name} is {params.get(name)!r:.60}, its cache's is {value!r}"
                _need(params.get(name, value) == value, wrong)
