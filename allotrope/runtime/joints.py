"""Calls that the native core computes together, though the plan has them apart.

Behind a linear layer, by whoever has just made those outputs:

    fc = linear(x)              h = activation(fc)
    gate_up = linear(x)         h = gated(gate, up), which are its halves
    out = linear(x)             y = add(x, out)

And, where a step has few rows, calls that take less time than threads need to meet: each thread computes those for
itself (native/core/program_threads.cpp). Their inputs are wanted until all have met again.

The arithmetic is the same, and so is every bit; it is tested. Plans, other executors and `verify` know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.ops.activation.native import number

_PANEL = 16  # outputs that lie together, as in native/core/panels.h: a half must not end within one
_BEHIND = ("activation", "gated", "add")

Asks = Callable[[Call], bool]


@dataclass(frozen=True)
class Joint:
    """What stands behind a linear layer. `curve` is the activation's number, −1 for none."""

    call: Call
    residual: str | None = None
    curve: int = -1
    gated: bool = False

    @property
    def out(self) -> str:
        """The slot where results go."""
        return self.call.outs["out"]


@dataclass(frozen=True)
class Work:
    """What is computed at once: the buffers that it reads and writes, parts of others standing for those."""

    reads: frozenset[str]
    writes: frozenset[str]
    whole: frozenset[str]  # of those that it writes, the ones of which it leaves nothing
    apart: bool = False  # threads may not have met before or after


def joints(plan: Plan, is_linear: Asks) -> Mapping[str, Joint]:
    """By the linear call's path, what the core computes with it; `is_linear` says of which calls it can."""
    return {
        linear.path: joint
        for linear, call in zip(plan.calls, plan.calls[1:], strict=False)
        if call.op in _BEHIND and is_linear(linear) and (joint := _joint(plan, linear, call)) is not None
    }


def _joint(plan: Plan, linear: Call, call: Call) -> Joint | None:
    """The two as one, if nothing but their places in the plan keeps them from it."""
    out, reads = linear.outs["out"], buffers(plan, linear.ins)
    if plan.buffers[plans.name(out)].of is not None or not reads.isdisjoint(buffers(plan, call.outs)):
        return None  # results would go where others still read inputs
    if call.op == "activation":
        return Joint(call, curve=int(number(call.params)[0])) if call.ins["x"] == out else None
    if call.op == "add":
        a, b = call.ins["a"], call.ins["b"]
        return Joint(call, residual=a if b == out else b) if a != b and out in (a, b) else None
    whole = plans.name(out)
    gate, up = (plan.buffers[plans.name(call.ins[name])] for name in ("gate", "up"))
    halves = gate.of == up.of == whole and gate.start == 0 and up.start == gate.width == up.width
    if not halves or 2 * gate.width != plan.buffers[whole].width or gate.width % _PANEL:
        return None
    return Joint(call, curve=int(number(call.params)[0]), gated=True)


def work(plan: Plan, together: Mapping[str, Joint], by_rows: Asks) -> Iterator[Work]:
    """The plan's calls in order, those of a joint as one."""
    gone = {joint.call.path for joint in together.values()}
    for call in plan.calls:
        if call.path in gone:
            continue
        calls = [call]
        reads, joint = buffers(plan, call.ins), together.get(call.path)
        if joint is not None:
            calls.append(joint.call)
            reads |= buffers(plan, joint.call.ins) - buffers(plan, call.outs)
        outs = [slot for one in calls for slot in one.outs.values()]
        whole = {plans.name(slot) for slot in outs if plans.kind(slot) == "b"}
        writes = buffers(plan, {slot: slot for slot in outs})
        yield Work(frozenset(reads), frozenset(writes), frozenset(whole), joint is None and by_rows(call))


def buffers(plan: Plan, slots: Mapping[str, str]) -> set[str]:
    """The buffers behind these slots, parts of others standing for those."""
    names = {plans.name(slot) for slot in slots.values() if plans.kind(slot) == "b"}
    while parts := {name for name in names if plan.buffers[name].of is not None}:
        names = names - parts | {str(plan.buffers[name].of) for name in parts}
    return names
