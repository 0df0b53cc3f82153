"""Fusions: named rewrites of a plan that compute several calls as one. Each is an alternative, not a fact.

q = linear(x, Wq)                                      q   k   v   are columns of the buffer qkv
k = linear(x, Wk)      becomes   qkv = linear(x, [Wq; Wk; Wv])
v = linear(x, Wv)                                      and nothing that reads them changes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Buffer, Call, Plan, Weight
from allotrope.build.rewrites import Activated, AddNorm, Residual, Rotation

_LINEAR = ("linear", "linear_codes", "linear_stored")


class Fusion(Protocol):
    """A rewrite. `groups` are the calls that each call it would make replaces, the new call's path first."""

    @property
    def name(self) -> str:
        """As `--without` takes it."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of device on which it is worth trying."""
        ...

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        ...

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        ...

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """For each call that it would make: its path, and the calls that it replaces."""
        ...


@dataclass(frozen=True)
class SideBySide:
    """Linear calls that share an input, by the last parts of their paths, in the order of their columns."""

    name: str
    members: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        groups = [group for _, group in self.groups(plan)]
        if not groups:
            yield f"the plan has no linear calls {', '.join(self.members)} side by side"
        ours = {call.path for call in plan.calls if call.path.rpartition(".")[2] in self.members}
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
            if len({_lie(plan, call) for call in group}) > 1:
                yield f"the weights of {these} lie differently"
            for call in group:
                if any(readers.count(slot) > 1 for slot in call.ins.values() if plans.kind(slot) == "w"):
                    yield f"a weight of {call.path} has another reader"
                if not writers[call.outs["out"]] <= ours:
                    yield f"buffer {call.outs['out']} is written by others, too"
            outputs.add(tuple(call.outs["out"] for call in group))
        if len(outputs) > 1:
            yield "blocks differ in their buffers"

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        groups = {group[0].path: group for _, group in self.groups(plan)}
        absorbed = {call.path for group in groups.values() for call in group[1:]}
        buffers, weights, calls = dict(plan.buffers), dict(plan.weights), list[Call]()
        start = 0
        for call in next(iter(groups.values())):
            name = plans.name(call.outs["out"])
            buffers[name] = replace(buffers[name], of=self.name, start=start)
            start += buffers[name].width
        buffers[self.name] = Buffer(buffers[name].rows, start, buffers[name].dtype)
        for call in plan.calls:
            if call.path in groups:
                calls.append(self._fused(groups[call.path], weights))
            elif call.path not in absorbed:
                calls.append(call)
        return replace(plan, buffers=buffers, weights=weights, calls=tuple(calls), fusions=(*plan.fusions, self.name))

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """The calls that would become one, block by block, where their weights are of one format."""
        linear = {call.path: call for call in plan.calls if call.op in _LINEAR}
        first = f".{self.members[0]}"
        for path in linear:
            stem = path.removesuffix(first)
            names = [f"{stem}.{member}" for member in self.members]
            if stem != path and all(name in linear for name in names):
                group = [linear[name] for name in names]
                if len({_format(plan, call) for call in group}) == 1:
                    yield f"{stem}.{self.name}", group

    def _fused(self, group: list[Call], weights: dict[str, Weight]) -> Call:
        """The one call, whose weights take the place of the group's in `weights`."""
        path = f"{group[0].path.rpartition('.')[0]}.{self.name}"
        ins = {"x": group[0].ins["x"]}
        for operand, slot in group[0].ins.items():
            if plans.kind(slot) != "w":
                continue
            old = [weights.pop(plans.name(call.ins[operand])) for call in group]
            parts = tuple(part for weight in old for part in weight.parts)
            weights[f"{path}.{operand}"] = Weight(parts, old[0].packing, old[0].dtype)
            ins[operand] = f"w:{path}.{operand}"
        return replace(group[0], path=path, ins=ins, outs={"out": f"b:{self.name}"})


def _format(plan: Plan, call: Call) -> object:
    """What calls must have alike to be one: the op, its parameters, how many bytes and scales a row of weights has."""
    rows = {
        operand: (weight.dtype, weight.parts[0][1][1:])
        for operand, slot in call.ins.items()
        if plans.kind(slot) == "w" and operand != "bias"
        for weight in [plan.weights[plans.name(slot)]]
    }
    return call.op, tuple(sorted(call.params.items())), tuple(sorted(rows.items()))


def _lie(plan: Plan, call: Call) -> object:
    """How the weights of a call are packed."""
    slots = sorted((operand, slot) for operand, slot in call.ins.items() if plans.kind(slot) == "w")
    return tuple((operand, plan.weights[plans.name(slot)].packing) for operand, slot in slots if operand != "bias")


SIDE_BY_SIDE = (SideBySide("qkv", ("q", "k", "v")), SideBySide("gate_up", ("gate", "up")))
FUSIONS: tuple[Fusion, ...] = (*SIDE_BY_SIDE, Rotation(), Residual(), AddNorm(), Activated())


def by_name(name: str) -> Fusion:
    """The fusion called `name`."""
    return next(fusion for fusion in FUSIONS if fusion.name == name)


def why_not(plan: Plan, fusion: Fusion) -> str | None:
    """Why `fusion` cannot be applied to `plan`, as a sentence; None if it can."""
    return next(fusion.obstacles(plan), None)


def apply(plan: Plan, fusion: Fusion) -> Plan:
    """The plan with `fusion`; it must be applicable."""
    return fusion.apply(plan)


def members(plan: Plan, fusion: Fusion) -> Mapping[str, tuple[str, ...]]:
    """For each call that the fusion would make: the paths of the calls that it replaces."""
    return {path: tuple(call.path for call in group) for path, group in fusion.groups(plan)}
