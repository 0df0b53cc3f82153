"""Fusions that save a GPU the launch of kernels: queries and keys rotated together, the residual added in place.

attn.q_rotary, attn.k_rotary    →  attn.qk_rotary over the columns of both, where they are neighbours
out = linear(z)                     x = linear_add(z, x): the residual stream stays in the buffer
y = add(x, out)                 →   where it lies, and whoever read y reads x
    y = add(x, out)                     x, n = add_norm(out, x), in one kernel of torch's compiler
    n = norm(y)                     →
    a = act(linear(x))              →   a = linear_activation(x)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
        return _over(replace(plan, buffers=buffers), tuple(calls), self.name)

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
        before = _reads(plan, plan.calls)
        for path, (linear, add) in groups:
            before[path] = {**before[linear.path], "residual": before[add.path]["a"]}
        yield from _overwritten(plan, self._calls(plan), before)

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        return _over(plan, self._calls(plan), self.name)

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """Each sum, with the linear call right before it."""
        for linear, add in zip(plan.calls, plan.calls[1:], strict=False):
            if linear.op == "linear" and add.op == "add" and add.ins["b"] == linear.outs["out"] != add.ins["a"]:
                yield add.path, [linear, add]

    def _calls(self, plan: Plan) -> tuple[Call, ...]:
        joint = {
            path: replace(
                linear, path=path, op="linear_add", ins={**linear.ins, "residual": add.ins["a"]}, outs=add.outs
            )
            for path, (linear, add) in self.groups(plan)
        }
        return _in_place(plan, joint, {linear.path for _, (linear, _) in self.groups(plan)})


@dataclass(frozen=True)
class AddNorm:
    """A sum and the norm right behind it become one call, the sum in place."""

    name: str = "add_norm"
    devices: tuple[str, ...] = ("cuda",)

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        groups = list(self.groups(plan))
        if not groups:
            yield "no norm of the plan stands right behind a sum"
        before = _reads(plan, plan.calls)
        moved = {f"{norm.path}:out": f"{add.path}:normed" for _, (add, norm) in groups}
        before = {p: {name: moved.get(value, value) for name, value in read.items()} for p, read in before.items()}
        for path, (add, norm) in groups:
            vectors = {name: value for name, value in before[norm.path].items() if name != "x"}
            before[path] = {"x": before[add.path]["b"], "residual": before[add.path]["a"], **vectors}
        yield from _overwritten(plan, self._calls(plan), before)

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        return _over(plan, self._calls(plan), self.name)

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """Each sum, with the norm right behind it."""
        for add, norm in zip(plan.calls, plan.calls[1:], strict=False):
            whole = norm.op in ("layernorm", "rmsnorm") and norm.params.get("heads", 1) == 1
            if add.op == "add" and whole and norm.ins["x"] == add.outs["out"]:
                yield add.path, [add, norm]

    def _calls(self, plan: Plan) -> tuple[Call, ...]:
        joint = {}
        for path, (add, norm) in self.groups(plan):
            vectors = {name: slot for name, slot in norm.ins.items() if name != "x"}
            ins = {"x": add.ins["b"], "residual": add.ins["a"], **vectors}
            outs = {"out": add.outs["out"], "normed": norm.outs["out"]}
            params = {"norm": norm.op.removesuffix("norm"), "eps": norm.params["eps"]}
            joint[path] = replace(add, op="add_norm", ins=ins, outs=outs, params=params)
        return _in_place(plan, joint, {norm.path for _, (_, norm) in self.groups(plan)})


def _in_place(plan: Plan, joint: Mapping[str, Call], gone: set[str]) -> tuple[Call, ...]:
    """The plan's calls, some replaced by joint ones that leave `out` where `residual` lies, some gone."""
    names: dict[str, str] = {}  # where a value lies that the plan has elsewhere
    found = []
    for old in plan.calls:
        if old.path in gone:
            continue
        call = joint.get(old.path, old)
        call = replace(call, ins={operand: names.get(slot, slot) for operand, slot in call.ins.items()})
        for slot in call.outs.values():
            names.pop(slot, None)
        if old.path in joint:
            stream = call.ins["residual"]
            if call.outs["out"] != stream:
                names[call.outs["out"]] = stream
            call = replace(call, outs={**call.outs, "out": stream})
        found.append(call)
    return tuple(found)


def _overwritten(plan: Plan, calls: tuple[Call, ...], expected: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Calls that would not read what they must."""
    for path, values in _reads(plan, calls).items():
        if values != expected[path]:
            yield f"{path}: it would read what has been overwritten"


@dataclass(frozen=True)
class Activated:
    """A linear call whose output only the activation reads becomes one call with it."""

    name: str = "activated"
    devices: tuple[str, ...] = ("cuda",)

    def obstacles(self, plan: Plan) -> Iterator[str]:
        """Why it cannot be applied, as sentences."""
        groups = list(self.groups(plan))
        if not groups:
            yield "the plan activates no linear call's output"
        reads = [value for values in _reads(plan, plan.calls).values() for value in values.values()]
        for path, (linear, _) in groups:
            if reads.count(f"{linear.path}:out") > 1 or not plan.stands_alone(linear.outs["out"]):
                yield f"{path}: what {linear.path} gives has another reader"

    def apply(self, plan: Plan) -> Plan:
        """The plan with it; it must be applicable."""
        groups = dict(self.groups(plan))
        gone = {linear.path for linear, _ in groups.values()}
        calls = []
        for call in plan.calls:
            if call.path in groups:
                linear, act = groups[call.path]
                calls.append(replace(act, op="linear_activation", ins=linear.ins))
            elif call.path not in gone:
                calls.append(call)
        return _over(plan, tuple(calls), self.name)

    def groups(self, plan: Plan) -> Iterator[tuple[str, list[Call]]]:
        """Each activation, with the linear call right before it."""
        for linear, act in zip(plan.calls, plan.calls[1:], strict=False):
            if (linear.op, act.op) == ("linear", "activation") and act.ins["x"] == linear.outs["out"]:
                yield act.path, [linear, act]


def _over(plan: Plan, calls: tuple[Call, ...], fusion: str) -> Plan:
    """The plan with other calls, and without the buffers that none of them uses."""
    used = {plans.name(slot) for call in calls for slot in (*call.ins.values(), *call.outs.values())}
    used |= {plan.buffers[name].of or name for name in used if name in plan.buffers} | {plan.hidden}
    buffers = {name: buffer for name, buffer in plan.buffers.items() if name in used}
    return replace(plan, buffers=buffers, calls=calls, fusions=(*plan.fusions, fusion))


def _reads(plan: Plan, calls: Iterable[Call]) -> dict[str, dict[str, str]]:
    """For each call, which result each operand holds when it runs: "path:operand", or the slot's own name."""
    now: dict[str, str] = {}
    found = {}
    for call in calls:
        found[call.path] = {operand: now.get(slot, slot) for operand, slot in call.ins.items()}
        for operand, slot in call.outs.items():
            now[slot] = f"{call.path}:{operand}"
            parts = (name for name, buffer in plan.buffers.items() if f"b:{buffer.of}" == slot)
            now.update({f"b:{name}": f"{call.path}:{operand} {name}" for name in parts})
    return found
