"""A step before a change and after it, call by call: what stays keeps its time, what is new is rehearsed.

    time in the model  =  overhead + pace · time in the rehearsal

`overhead` (what an executor adds to a call) is seen on the small calls, `pace` (how far a model's company slows a call)
on the calls that make way, both in the engine that was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.explain.account import Phase
from allotrope.explain.drive import Asked
from allotrope.explain.floors import priced
from allotrope.explain.rehearse import Rehearsal, tactic_for
from allotrope.runtime.program import rows_of
from allotrope.runtime.step import Seconds

_PACE = (0.5, 4.0)  # beyond, the machine was busy with something else


@dataclass(frozen=True)
class Sizes:
    """A step: rows of each kind, whose they are, how long the longest is after it; and how many there are of it."""

    rows: dict[str, int]
    requests: int
    context: int
    steps: int


def sizes(asked: Asked, budget: int) -> tuple[Sizes, Sizes]:
    """A step that reads prompts, and one that decodes, in the middle of the answer."""
    tokens, batch = asked.batch * asked.into, asked.batch
    steps = -(-tokens // budget)
    rows = {TOKENS: -(-tokens // steps), LOGITS: batch, SAMPLES: batch}
    reading = Sizes(rows, min(batch, rows[TOKENS]), asked.into, steps)
    middle = asked.into + max(asked.output // 2, 1)
    return reading, Sizes({TOKENS: batch, LOGITS: batch, SAMPLES: batch}, batch, middle, max(asked.output - 1, 0))


@dataclass
class Scene:
    """A plan's calls in a step of these sizes."""

    plan: Plan
    sizes: Sizes
    rehearsal: Rehearsal
    page_size: int
    held: float = field(init=False)  # bytes that a step reads and that nothing touched since the last one

    def __post_init__(self) -> None:
        self.held = sum(map(self._cold, self.plan.calls))

    def seconds(self, place: int) -> float:
        """A call's rehearsal."""
        call = self.plan.calls[place]
        return self.rehearsal.seconds(self.plan, call, self._load(call), self.held)

    def tactic(self, place: int) -> str:
        """Which one computes the call."""
        call = self.plan.calls[place]
        return tactic_for(call, self._load(call).rows)

    def keys(self) -> list[tuple[str, str, str]]:
        """By which calls are the same before and after: where they stand, what they pose, what computes them."""
        found = []
        for place, call in enumerate(self.plan.calls):
            found.append((call.path, problem(self.plan, call, self._load(call)).key(), self.tactic(place)))
        return found

    def _load(self, call: Call) -> Load:
        rows = self.sizes.rows[rows_of(self.plan, call)]
        return Load(rows, self.sizes.requests, self.sizes.context, self.page_size)

    def _cold(self, call: Call) -> float:
        if call.op == "attention":
            return self.sizes.requests * priced(self.plan, call, 1, self.sizes.context).cold
        reads = any(plans.kind(slot) == "w" for slot in call.ins.values())
        return priced(self.plan, call, self._load(call).rows, self.sizes.context).cold if reads else 0.0


@dataclass
class Changed:
    """Steps of one kind before and after; `step_s` as measured before, per call; None: there was no such step."""

    before: Scene
    after: Scene
    step_s: Seconds | None
    gone: list[int] = field(init=False)
    new: list[int] = field(init=False)

    def __post_init__(self) -> None:
        old, now = self.before.keys(), self.after.keys()
        stays = set(old) & set(now)
        self.gone = [place for place, key in enumerate(old) if key not in stays]
        self.new = [place for place, key in enumerate(now) if key not in stays]

    def spent(self, phase: Phase) -> float:
        """The phase's time, with what is new in place of what is gone."""
        if self.step_s is None:
            return phase.wall_s
        return phase.wall_s - float(phase.call_s[self.gone].sum()) + self.after.sizes.steps * sum(self.predicted())

    def predicted(self) -> list[float]:
        """The new calls' seconds in a step."""
        overhead, found = self.overhead(), list[float]()
        for kind in (multiplies, attends, is_small):
            pace = self.pace(kind)
            mine = [place for place in self.new if kind(self.after.plan.calls[place])]
            found += [max(overhead + pace * self.after.seconds(place), 0.0) for place in mine]
        return found

    def overhead(self) -> float:
        """What the executor adds to a call, by the small ones."""
        took, calls = self._took(), self.before.plan.calls
        small = [place for place, seconds in enumerate(took) if seconds and is_small(calls[place])]
        return statistics.median([took[place] - self.before.seconds(place) for place in small]) if small else 0.0

    def pace(self, kind: Callable[[Call], bool]) -> float:
        """How much longer calls of a kind take in the model than in a rehearsal, the overhead apart."""
        mine = [place for place in self.gone if kind(self.before.plan.calls[place])]
        rehearsed = sum(map(self.before.seconds, mine))
        if kind is is_small or not rehearsed or self.step_s is None:
            return 1.0
        own = float(self.step_s[mine].sum()) - len(mine) * self.overhead()
        return min(max(own / rehearsed, _PACE[0]), _PACE[1])

    def _took(self) -> Sequence[float]:
        return [] if self.step_s is None else self.step_s.tolist()


def multiplies(call: Call) -> bool:
    """Whether it multiplies with a weight matrix."""
    return call.op.startswith("linear")


def attends(call: Call) -> bool:
    """Whether it reads keys and values."""
    return call.op == "attention"


def is_small(call: Call) -> bool:
    """Whether it does neither."""
    return not multiplies(call) and not attends(call)
