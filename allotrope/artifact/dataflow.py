"""Whether a plan's calls fit together: what they read was written before, and comes from where it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, TOKENS, Call, Plan
from allotrope.ops import registry
from allotrope.ops.contract import Contract, Operand, Role

Need = Callable[[bool, str], None]
"""`need(well, problem)`: how a doubt is told."""

# What each step slot is read as, where operand and slot have different names.
STEP_SLOTS: Mapping[str, str] = {"ids": "tokens", "slots": "kv_slots", "index": "logit_rows", "rows": "sample_rows"}
FLOATS = ("fp32", "fp16", "bf16")  # in which what is "stored" may be: scales of codes, weights to be widened
_ROWS = {"tokens": TOKENS, "logits": LOGITS}  # axes that count rows of one kind, whatever the call's own are


def check_flow(plan: Plan, need: Need) -> None:
    """Every operand of every call is of the right kind and, if computed, computed before it is read."""
    flow = _Flow(plan, need)
    for call in plan.calls:
        flow.take(call)
    for name in plan.buffers:
        need(name in flow.used, f"buffer {name} is never written")
    need(plan.hidden in flow.used, f"the residual buffer {plan.hidden} is never written")
    drawn = [call for call in plan.calls if call.op == "sample"]
    need(len(drawn) == 1, f"{len(drawn)} calls draw a token, one must")


@dataclass
class _Flow:
    """What has been written so far, call by call: columns of whole buffers, and layers of the cache."""

    plan: Plan
    need: Need
    written: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)

    def take(self, call: Call) -> None:
        """Check one call, and remember what it writes."""
        contract = registry.contract(call.op)
        kinds = set[str]()
        for operand, slot in call.ins.items():
            self._take(call, operand, contract.ins[operand], slot, writes=False)
            kinds |= self._rows(call, contract, operand, contract.ins[operand], slot)
        for operand, slot in call.outs.items():
            self._take(call, operand, contract.outs[operand], slot, writes=True)
            kinds |= self._rows(call, contract, operand, contract.outs[operand], slot)
        self.need(len(kinds) == 1, f"{call.path}: its rows are {' and '.join(sorted(kinds)) or 'of no kind'}")

    def _take(self, call: Call, operand: str, spec: Operand, slot: str, writes: bool) -> None:
        kind, name = plans.kind(slot), plans.name(slot)
        wanted = {Role.ACTIVATION: "b", Role.WEIGHT: "w", Role.CACHE: "c"}.get(spec.role, "s")
        self.need(kind == wanted, f"{call.path}: {operand} may not be in slot {slot!r}")
        if kind == "s":
            expected = STEP_SLOTS.get(operand, operand)
            self.need(name == expected, f"{call.path}: {operand} must be in slot 's:{expected}', not {slot!r}")
        elif kind == "c":
            self._cache(call, operand, name, writes)
        elif kind == "w":
            stored = self.plan.weights[name].dtype
            allowed = {"compute": ("compute", self.plan.dtype), "stored": FLOATS}.get(spec.dtype, (spec.dtype,))
            self.need(stored in allowed, f"{call.path}: weight {name} is stored as {stored}")
        else:
            stored = self.plan.buffers[name].dtype
            self.need(stored == spec.dtype, f"{call.path}: {operand} is {spec.dtype}, buffer {name} {stored}")
            (self._write if writes else self._read)(call, name)

    def _cache(self, call: Call, operand: str, name: str, writes: bool) -> None:
        layer, _, part = name.partition(".")
        self.need(operand == f"{part}_cache", f"{call.path}: {operand} is in slot 'c:{name}'")
        slots = {plans.name(slot).partition(".")[0] for slot in call.ins.values() if plans.kind(slot) == "c"}
        self.need(slots == {layer}, f"{call.path}: its caches are of different layers")
        inout = operand in call.outs
        self.need(not inout or call.outs[operand] == call.ins[operand], f"{call.path}: {operand} is written elsewhere")
        if writes:
            self.need(name not in self.layers, f"{call.path}: cache {name} has been written already")
            self.layers.add(name)
        else:
            self.need(inout or name in self.layers, f"{call.path}: cache {name} is read before it is written")

    def _columns(self, name: str) -> tuple[str, int, int]:
        """The whole buffer that `name` lies in, and from which to which of its columns."""
        buffer = self.plan.buffers[name]
        return (name, 0, buffer.width) if buffer.of is None else (buffer.of, buffer.start, buffer.start + buffer.width)

    def _write(self, call: Call, name: str) -> None:
        whole, start, stop = self._columns(name)
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*self.written.get(whole, []), (start, stop)]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        self.written[whole] = merged
        self.used |= {name, whole}

    def _read(self, call: Call, name: str) -> None:
        whole, start, stop = self._columns(name)
        there = any(begin <= start and stop <= end for begin, end in self.written.get(whole, []))
        self.need(there, f"{call.path}: buffer {name} is read before it is written")
        self.used.add(name)

    def _rows(self, call: Call, contract: Contract, operand: str, spec: Operand, slot: str) -> set[str]:
        """The kind of rows that the call has by this operand; nothing if the operand does not say."""
        if plans.kind(slot) != "b":
            return set()
        kind = self.plan.buffers[plans.name(slot)].rows
        if spec.axes[0] == contract.rows:
            return {kind}
        expected = _ROWS.get(spec.axes[0])
        self.need(expected in (None, kind), f"{call.path}: {operand} has rows of {kind}, not of {expected}")
        return set()
