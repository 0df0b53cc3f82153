"""Fusions: named rewrites of a plan that compute several calls as one. Each is an alternative, not a fact.

q = linear(x, Wq)                                      q   k   v   are columns of the buffer qkv
k = linear(x, Wk)      becomes   qkv = linear(x, [Wq; Wk; Wv])
v = linear(x, Wv)                                      and nothing that reads them changes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Buffer, Call, Plan, Weight


@dataclass(frozen=True)
class Fusion:
    """Linear calls that share an input, by the last parts of their paths, in the order of their columns."""

    name: str
    members: tuple[str, ...]


FUSIONS = (Fusion("qkv", ("q", "k", "v")), Fusion("gate_up", ("gate", "up")))


def by_name(name: str) -> Fusion:
    """The fusion called `name`."""
    return next(fusion for fusion in FUSIONS if fusion.name == name)


def why_not(plan: Plan, fusion: Fusion) -> str | None:
    """Why `fusion` cannot be applied to `plan`, as a sentence; None if it can."""
    return next(_obstacles(plan, fusion), None)


def _obstacles(plan: Plan, fusion: Fusion) -> Iterator[str]:
    groups = list(_groups(plan, fusion))
    if not groups:
        yield f"the plan has no linear calls {', '.join(fusion.members)} side by side"
    ours = {call.path for group in groups for call in group}
    writers: dict[str, set[str]] = {}
    for call in plan.calls:
        for slot in call.outs.values():
            writers.setdefault(slot, set()).add(call.path)
    readers = [slot for call in plan.calls for slot in call.ins.values() if plans.kind(slot) == "w"]
    outputs = set()
    for group in groups:
        these = f"{group[0].path} and its neighbours"
        if len({call.ins["x"] for call in group}) > 1:
            yield f"{these} read different inputs"
        if len({"bias" in call.ins for call in group}) > 1:
            yield f"some of {these} have a bias and some have none"
        weights = [plan.weights[plans.name(call.ins["weight"])] for call in group]
        if len({(weight.packing, weight.dtype) for weight in weights}) > 1:
            yield f"the weights of {these} lie differently"
        for call in group:
            if any(readers.count(call.ins[operand]) > 1 for operand in ("weight", "bias") if operand in call.ins):
                yield f"a weight of {call.path} has another reader"
            if not writers[call.outs["out"]] <= ours:
                yield f"buffer {call.outs['out']} is written by others, too"
        outputs.add(tuple(call.outs["out"] for call in group))
    if len(outputs) > 1:
        yield "blocks differ in their buffers"


def apply(plan: Plan, fusion: Fusion) -> Plan:
    """The plan with `fusion`; it must be applicable."""
    groups = {group[0].path: group for group in _groups(plan, fusion)}
    absorbed = {call.path for group in groups.values() for call in group[1:]}
    buffers, weights, calls = dict(plan.buffers), dict(plan.weights), list[Call]()
    start = 0
    for call in next(iter(groups.values())):
        name = plans.name(call.outs["out"])
        buffers[name] = replace(buffers[name], of=fusion.name, start=start)
        start += buffers[name].width
    buffers[fusion.name] = Buffer(buffers[name].rows, start, buffers[name].dtype)
    for call in plan.calls:
        if call.path in groups:
            calls.append(_fused(fusion, groups[call.path], weights))
        elif call.path not in absorbed:
            calls.append(call)
    return replace(plan, buffers=buffers, weights=weights, calls=tuple(calls), fusions=(*plan.fusions, fusion.name))


def _groups(plan: Plan, fusion: Fusion) -> Iterator[list[Call]]:
    """The calls that the fusion would make one, block by block."""
    linear = {call.path: call for call in plan.calls if call.op == "linear"}
    first = f".{fusion.members[0]}"
    for path in linear:
        stem = path.removesuffix(first)
        names = [f"{stem}.{member}" for member in fusion.members]
        if stem != path and all(name in linear for name in names):
            yield [linear[name] for name in names]


def _fused(fusion: Fusion, group: list[Call], weights: dict[str, Weight]) -> Call:
    """The one call, whose weights take the place of the group's in `weights`."""
    path = f"{group[0].path.rpartition('.')[0]}.{fusion.name}"
    ins = {"x": group[0].ins["x"]}
    for operand in ("weight", "bias"):
        if operand not in group[0].ins:
            continue
        old = [weights.pop(plans.name(call.ins[operand])) for call in group]
        parts = tuple(part for weight in old for part in weight.parts)
        weights[f"{path}.{operand}"] = Weight(parts, old[0].packing, old[0].dtype)
        ins[operand] = f"w:{path}.{operand}"
    return replace(group[0], path=path, ins=ins, outs={"out": f"b:{fusion.name}"})


def members(plan: Plan, fusion: Fusion) -> Mapping[str, tuple[str, ...]]:
    """For each call that the fusion would make: the paths of the calls that it replaces."""
    return {
        f"{group[0].path.rpartition('.')[0]}.{fusion.name}": tuple(call.path for call in group)
        for group in _groups(plan, fusion)
    }
