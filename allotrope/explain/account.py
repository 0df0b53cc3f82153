"""Where a run's wall time went: every call of every step, every gap of the host, and what nobody can account for.

On a CPU the host computes: a step's time is that of its calls and of what the host did around them. A GPU works beside
the host, so there its own clock is taken: how long it worked on each step, and how long it stood still in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allotrope.artifact.plan import Plan
from allotrope.explain.drive import Run
from allotrope.explain.floors import Floors
from allotrope.explain.notes import LAUNCHING, WAITING, Stepped
from allotrope.runtime.step import Seconds

PREPARING, RETURNING, IDLE = "preparing", "returning", "standing still"
WHOLE = "recorded steps"  # which no clock looks into


@dataclass(frozen=True)
class Phase:
    """Steps of one kind, summed: `call_s` and `floor_s` per call of the plan."""

    steps: int
    tokens: int
    wall_s: float
    call_s: Seconds
    whole_s: float  # of steps whose calls are not told apart
    floor_s: Seconds | None  # None: no ceilings
    cold: Seconds  # bytes per call
    held: float  # cold bytes of all calls in one step
    moved: Seconds  # bytes per call, wherever they lie
    flops: Seconds


@dataclass(frozen=True)
class Account:
    """A run's time: `context` until everybody had a first token, `decode` the rest; `gaps` are the host's."""

    total_s: float
    context: Phase
    decode: Phase
    gaps: dict[str, float]
    unaccounted_s: float

    @property
    def calls_s(self) -> Seconds:
        """Per call of the plan, over all steps."""
        return self.context.call_s + self.decode.call_s

    @property
    def floors_s(self) -> Seconds | None:
        """Likewise, the least."""
        one, other = self.context.floor_s, self.decode.floor_s
        return None if one is None or other is None else one + other

    @property
    def whole_s(self) -> float:
        """Of steps whose calls are not told apart."""
        return self.context.whole_s + self.decode.whole_s


def account(run: Run, plan: Plan, floors: Floors, known: bool, beside: bool) -> Account:
    """`known`: whether there are ceilings. `beside`: the device works beside the host."""
    steps = run.seen.steps
    context = [one for one in steps if one.context]
    decode = [one for one in steps if not one.context]
    answering = min(run.answering, run.ended)
    phases = (
        _phase(context, plan, floors, known, answering - run.began),
        _phase(decode, plan, floors, known, run.ended - answering),
    )
    gaps = _gaps(run)
    around = gaps.pop(LAUNCHING, 0.0) + gaps.pop(WAITING, 0.0)
    inside = sum(phase.whole_s + float(phase.call_s.sum()) for phase in phases)
    if beside:
        gaps = {name: took for name, took in gaps.items() if name in ("tokenising", "queueing")}
        gaps[IDLE] = sum(one.idle_s for one in steps[1:])
    else:
        gaps[PREPARING] = sum(one.prepare_s for one in steps)
        gaps[RETURNING] = max(around - inside - gaps[PREPARING], 0.0)
    rest = run.seconds - inside - sum(gaps.values())
    return Account(run.seconds, *phases, gaps, rest)


def _phase(steps: Sequence[Stepped], plan: Plan, floors: Floors, known: bool, wall_s: float) -> Phase:
    calls = np.zeros(len(plan.calls))
    least, cold, moved, flops, whole = *(calls.copy() for _ in range(4)), 0.0
    for one in steps:
        prices = floors.prices(one.step)
        held = sum(price.cold for price in prices)
        cold += [price.cold for price in prices]
        moved += [price.cold + price.warm for price in prices]
        flops += [price.flops for price in prices]
        least += [floors.seconds(price, held) for price in prices] if known else 0.0
        if one.call_s is None:
            whole += one.busy_s
        else:
            calls += one.call_s
    tokens = sum(one.step.samples for one in steps)
    held = float(cold.sum()) / max(len(steps), 1)
    return Phase(len(steps), tokens, wall_s, calls, whole, least if known else None, cold, held, moved, flops)


def _gaps(run: Run) -> dict[str, float]:
    """What the host did, by name."""
    found: dict[str, float] = {}
    for span in run.seen.spans:
        found[span.name] = found.get(span.name, 0.0) + span.seconds
    return found
