"""A plan made ready to run: which tactic serves which row count, which weight it reads, what room it needs.

What can be settled is settled here, at load. Running is then nothing but calling; the executors differ in
where the memory behind the slots comes from, and in who calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from allotrope import native
from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.artifact.problems import Load, problem
from allotrope.errors import EngineError
from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.contract import Array, Scalar
from allotrope.ops.native import NativeTactic
from allotrope.ops.tactic import Tactic, granule
from allotrope.runtime.weights import Arrays

if TYPE_CHECKING:
    import torch

Tap = Callable[[Call, dict[str, Array]], Mapping[str, Array] | None]
After = Callable[[Call, dict[str, Array], bool], Mapping[str, Array] | None]
_UNIT = 16  # rows: attention over more of padding takes longer than copying a few rows into tiles
ALIGN = 64  # bytes: what a workspace's size is rounded up to


@dataclass(frozen=True)
class Choice:
    """One tactic of a call: up to how many rows it serves, and the weights as it reads them."""

    bound: int | None
    tactic: Tactic
    weights: Mapping[str, Array]


class _Unpacked(Mapping[str, Array]):
    """Weights of which some have to be laid down anew: they are whenever they are asked for, and never kept.

    That is for references over an engine packed for others' kernels, so that checking a large model does not take
    its size in memory a second time.
    """

    def __init__(self, weights: Arrays, asked: Mapping[str, tuple[str, Weight, str]]) -> None:
        self._weights, self._asked = weights, asked
        self._kept = {name: weights.get(*ask) for name, ask in asked.items() if not weights.copied(*ask)}

    def __getitem__(self, operand: str) -> Array:
        if operand in self._kept:
            return self._kept[operand]
        return self._weights.get(*self._asked[operand])

    def __iter__(self) -> Iterator[str]:
        return iter(self._asked)

    def __len__(self) -> int:
        return len(self._asked)


def _given(weights: Arrays, asked: Mapping[str, tuple[str, Weight, str]]) -> Mapping[str, Array]:
    """The weights that a tactic reads, by operand."""
    found = _Unpacked(weights, asked)
    return found if any(weights.copied(*ask) for ask in asked.values()) else dict(found)


@dataclass
class Bound:
    """A call with everything resolved that does not change from step to step."""

    call: Call
    rows: str  # TOKENS, LOGITS or SAMPLES
    params: Mapping[str, Scalar]
    choices: tuple[Choice, ...]
    ins: tuple[tuple[str, str], ...]  # operand and slot; weights are in the choices
    outs: tuple[tuple[str, str], ...]
    whole: frozenset[str]  # slots of buffers that are no part of another and have none
    needs: dict[str, int] = field(default_factory=dict)  # tactic → workspace bytes for its largest rows

    def choice_for(self, rows: int) -> Choice:
        """The choice for this many rows; the last one has no bound."""
        for choice in self.choices:
            if choice.bound is None or rows <= choice.bound:
                return choice
        raise EngineError(f"no tactic for {rows} rows", where=self.call.path)


class Program:
    """A plan's calls, bound to one device's weights. It owns no memory but those.

    `threads` are the native core's, now and later: workspaces are sized for them.
    """

    def __init__(self, plan: Plan, weights: Arrays, device: Device, threads: int | None = None) -> None:
        self.plan = plan
        self.threads = native.threads() if threads is None else min(threads, native.MOST_THREADS)
        self.calls = [_bind(plan, call, weights) for call in plan.calls]
        self._device = device

    def workspace(self, capacity: Mapping[str, int], load: Load) -> int:
        """Bytes for a step of `capacity` rows of each kind. `load` gives the pool, the requests and the context.

        A tactic that cannot serve it here is fatal, not a fall-back.
        """
        known: dict[tuple[str, str], int] = {}
        with native.team(self.threads):
            for bound in self.calls:
                for choice in bound.choices:
                    most = capacity[bound.rows]
                    size = min(most, choice.bound or most)
                    needs = self._needs(bound.call, choice.tactic, size, load, known)
                    bound.needs[choice.tactic.name] = max(needs, bound.needs.get(choice.tactic.name, 0))
        return -(-max(known.values(), default=0) // ALIGN) * ALIGN

    def run(
        self,
        slots: dict[str, Any],
        rows: Mapping[str, int],
        workspace: torch.Tensor | None,
        after: After | None = None,
        promises: Mapping[str, Mapping[str, Scalar]] | None = None,
    ) -> None:
        """Call by call, over the tensors behind `slots`; a result that a tactic made itself takes its slot there.

        `after(call, outs, weighed)` is told what was just made, and whether weights were read. It may give other
        inputs, with which the call is made again.

        `promises`, by op, are parameters that hold for these rows.
        """
        with native.team(self.threads):
            self._run(slots, rows, workspace, after, promises or {})

    def _run(
        self,
        slots: dict[str, Any],
        rows: Mapping[str, int],
        workspace: torch.Tensor | None,
        after: After | None,
        promises: Mapping[str, Mapping[str, Scalar]],
    ) -> None:
        for bound in self.calls:
            count = rows[bound.rows]
            if not count:
                continue
            choice = bound.choice_for(count)
            ins = dict(choice.weights)
            for operand, slot in bound.ins:
                ins[operand] = slots[slot]
            outs = {operand: slots[slot] for operand, slot in bound.outs}
            params = {**bound.params, **promises.get(bound.call.op, {})}
            room = workspace if bound.needs[choice.tactic.name] else None
            _take(choice.tactic.run(outs, ins, params, room), outs, bound, slots)
            if after is not None and (others := after(bound.call, outs, bool(choice.weights))):
                _take(choice.tactic.run(outs, {**ins, **others}, params, room), outs, bound, slots)

    def _needs(self, call: Call, tactic: Tactic, rows: int, load: Load, known: dict[tuple[str, str], int]) -> int:
        posed = problem(self.plan, call, Load(rows, min(rows, load.requests), load.context, load.page_size, load.pages))
        key = (tactic.name, posed.key())
        if key not in known:
            reason = tactic.why_not(posed, self._device)
            if reason is not None:
                raise EngineError(
                    f"the planned tactic {tactic.name} cannot run here: {reason}",
                    where=call.path,
                    remedy="rebuild the engine here with: allotrope build",
                )
            known[key] = tactic.workspace(posed, self._device)
        return known[key]


def _take(own: Mapping[str, Array] | None, outs: dict[str, Array], bound: Bound, slots: dict[str, Any]) -> None:
    """Results that a tactic made itself take their slots' places; one that others see parts of is copied there."""
    if not own:
        return
    for operand, slot in bound.outs:
        if operand in own and slot in bound.whole:
            outs[operand] = slots[slot] = own[operand]
        elif operand in own:
            outs[operand].copy_(own[operand])


def _bind(plan: Plan, call: Call, weights: Arrays) -> Bound:
    contract = registry.contract(call.op)
    weighed = {operand: slot for operand, slot in call.ins.items() if plans.kind(slot) == "w"}
    choices = []
    for bound, name in call.tactics:
        tactic = registry.tactic(call.op, name)
        packings = tactic.packings()
        asked = {
            operand: (plans.name(slot), plan.weights[plans.name(slot)], packings.get(operand, "rows"))
            for operand, slot in weighed.items()
        }
        choices.append(Choice(bound, tactic, _given(weights, asked)))
    return Bound(
        call=call,
        rows=rows_of(plan, call),
        params=contract.complete(call.params),
        choices=tuple(choices),
        ins=tuple((operand, slot) for operand, slot in call.ins.items() if operand not in weighed),
        outs=tuple(call.outs.items()),
        whole=frozenset(slot for slot in call.outs.values() if plans.kind(slot) == "b" and plan.stands_alone(slot)),
    )


def rows_of(plan: Plan, call: Call) -> str:
    """Which kind of rows the call has: that of a buffer whose first axis its contract counts rows over."""
    contract = registry.contract(call.op)
    for operands, slots in ((contract.outs, call.outs), (contract.ins, call.ins)):
        for operand, slot in slots.items():
            if plans.kind(slot) == "b" and operands[operand].axes[0] == contract.rows:
                return plan.buffers[plans.name(slot)].rows
    raise EngineError(f"no buffer of op {call.op} has rows", where=call.path)


def capturable_rows(plan: Plan, most: int) -> int:
    """Up to how many rows, of at most `most`, all that the plan calls can be recorded in a graph."""
    for call in plan.calls:
        served = 0
        for bound, name in call.tactics:
            if not registry.tactic(call.op, name).capturable:
                break
            served = most if bound is None else min(most, bound)
        most = served
    return most


def uncapturable(plan: Plan) -> tuple[str, str]:
    """Path and tactic of the first call that keeps even a single row out of a graph."""
    found = ((call.path, call.tactics[0][1]) for call in plan.calls if not _first(call).capturable)
    return next(found, ("", ""))


def unserved(plan: Plan) -> tuple[str, str] | None:
    """Path and tactic of the first call that the native core does not compute; None if it computes them all."""
    for call in plan.calls:
        for _, name in call.tactics:
            if not isinstance(registry.tactic(call.op, name), NativeTactic):
                return call.path, name
    return None


def _first(call: Call) -> Tactic:
    return registry.tactic(call.op, call.tactics[0][1])


def row_unit(plan: Plan) -> int:
    """The multiple of rows at which no tactic of the plan copies its rows into tiles; 1 where copying costs less."""
    unit = max(granule(registry.tactic(call.op, name)) for call in plan.calls for _, name in call.tactics)
    return unit if unit <= _UNIT else 1
