"""Fusions that save a GPU the launch of kernels: queries and keys rotated together, the residual added in place.

attn.q_rotary, attn.k_rotary    →  attn.qk_rotary over the columns of both, where they are neighbours
out = linear(z)                     x = linear_add(z, x): the residual stream stays in the buffer
y = add(x, out)                 →   where it lies, and whoever read y reads x
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Buffer, Call, Plan


@dataclass(frozen=True)
class Rotation:
    """Queries and keys whose columns lie side by side are rotated by one call with the heads of both."""

    name: str = "qk_rotary"
    devices: tuple[str, ...] = ("cuda",)

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        groups = list(self.groups(plan))
        if not groups:
            yield "the plan has no rotated queries beside rotated keys"
        if len({tuple((call.ins["x"], call.outs["out"]) for call in group) for _, group in groups}) > 1:
            yield "blocks differ in their buffers"
        for path, (q, k) in groups:
            x, y = (plan.buffers[plans.name(call.ins["x"])] for call in (q, k))
            if x.of is None or x.of != y.of or y.start != x.start + x.width:
                yield f"{path}: queries and keys are no neighbouring columns"
            if _without_heads(q) != _without_heads(k):
                yield f"{path}: queries and keys turn differently"
            if any(plan.buffers[plans.name(call.outs["out"])].of is not None for call in (q, k)):
                yield f"{path}: what is rotated is part of another buffer already"

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        groups = {group[0].path: (path, group) for path, group in self.groups(plan)}
        absorbed = {group[1].path for _, group in groups.values()}
        _, (q, k) = next(iter(groups.values()))
        buffers, whole = dict(plan.buffers), f"{self.name}_out"
        x, y = (buffers[plans.name(call.ins["x"])] for call in (q, k))
        buffers[self.name] = replace(x, width=x.width + y.width)
        buffers[whole] = Buffer(x.rows, x.width + y.width, x.dtype)
        for call, start in ((q, 0), (k, x.width)):
            name = plans.name(call.outs["out"])
            buffers[name] = replace(buffers[name], of=whole, start=start)
        calls = []
        for call in plan.calls:
            if call.path in groups:
                path, (q, k) = groups[call.path]
                heads = int(q.params["heads"]) + int(k.params["heads"])
                ins, outs = {**q.ins, "x": f"b:{self.name}"}, {"out": f"b:{whole}"}
                calls.append(replace(q, path=path, ins=ins, outs=outs, params={**q.params, "heads": heads}))
            elif call.path not in absorbed:
                calls.append(call)
        return replace(plan, buffers=buffers, calls=tuple(calls), fusions=(*plan.fusions, self.name))

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """Each block's two rotations."""
        rotary = {call.path: call for call in plan.calls if call.op == "rotary"}
        for path, call in rotary.items():
            stem = path.removesuffix(".q_rotary")
            if stem != path and f"{stem}.k_rotary" in rotary:
                yield f"{stem}.{self.name}", [call, rotary[f"{stem}.k_rotary"]]


def _without_heads(call: Call) -> tuple[object, object]:
    ins = {operand: slot for operand, slot in call.ins.items() if operand != "x"}
    return ins, {name: value for name, value in call.params.items() if name != "heads"}


@dataclass(frozen=True)
class Residual:
    """A linear call whose output is only added to the residual stream becomes part of the addition."""

    name: str = "residual"
    devices: tuple[str, ...] = ("cuda",)

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        groups = list(self.groups(plan))
        if not groups:
            yield "the plan adds no linear call's output to anything"
        for path, (linear, _) in groups:
            if not plan.stands_alone(linear.outs["out"]):
                yield f"{path}: buffer {linear.outs['out']} is part of another"
        before, after = _reads(plan, plan.calls), _reads(plan, self._renamed(plan))
        for path, (linear, add) in groups:
            before[path] = {**before[linear.path], "residual": before[add.path]["a"]}
        for path, values in after.items():
            if values != before[path]:
                yield f"{path}: it would read what has been overwritten"

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        calls = self._renamed(plan)
        used = {plans.name(slot) for call in calls for slot in (*call.ins.values(), *call.outs.values())}
        used |= {plan.buffers[name].of or name for name in used if name in plan.buffers} | {plan.hidden}
        buffers = {name: buffer for name, buffer in plan.buffers.items() if name in used}
        return replace(plan, buffers=buffers, calls=calls, fusions=(*plan.fusions, self.name))

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """Each sum, with the linear call right before it."""
        for linear, add in zip(plan.calls, plan.calls[1:], strict=False):
            if linear.op == "linear" and add.op == "add" and add.ins["b"] == linear.outs["out"] != add.ins["a"]:
                yield add.path, [linear, add]

    def _renamed(self, plan: Plan) -> tuple[Call, ...]:
        """The new calls, over the buffers where values now lie."""
        sums = {path: linear for path, (linear, _) in self.groups(plan)}
        gone = {linear.path for linear in sums.values()}
        names: dict[str, str] = {}  # where a value lies that the plan has elsewhere
        found = []
        for call in plan.calls:
            if call.path in gone:
                continue
            linear = sums.get(call.path)
            read = (call if linear is None else linear).ins
            ins, stream = {operand: names.get(slot, slot) for operand, slot in read.items()}, ""
            if linear is not None:
                stream = names.get(call.ins["a"], call.ins["a"])
            for slot in call.outs.values():
                names.pop(slot, None)
            if linear is None:
                found.append(replace(call, ins=ins))
                continue
            if call.outs["out"] != stream:
                names[call.outs["out"]] = stream
            fused = replace(linear, path=call.path, op="linear_add", ins={**ins, "residual": stream})
            found.append(replace(fused, outs={"out": stream}))
        return tuple(found)


def _reads(plan: Plan, calls: Iterable[Call]) -> dict[str, dict[str, str]]:
    """For each call, whose result each operand holds when it runs."""
    now: dict[str, str] = {}
    found = {}
    for call in calls:
        found[call.path] = {operand: now.get(slot, slot) for operand, slot in call.ins.items()}
        for slot in call.outs.values():
            now[slot] = call.path
            parts = (name for name, buffer in plan.buffers.items() if f"b:{buffer.of}" == slot)
            now.update({f"b:{name}": f"{call.path} {name}" for name in parts})
    return found
