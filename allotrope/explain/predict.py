"""What a change would do, before it is made: each changed call is rehearsed, and what a model adds to that is kept.

    time in the model  =  overhead + pace · time in the rehearsal

`overhead` (what an executor adds to a call) is seen on the small calls, `pace` (how far a model's company slows a call)
on the calls that are about to change, both in the engine that was measured. What does not change keeps its time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.build.options import BuildOptions
from allotrope.errors import UsageError
from allotrope.explain.account import Phase
from allotrope.explain.changes import Change, described, weight_slots
from allotrope.explain.drive import Asked
from allotrope.explain.explanation import Explained, short
from allotrope.explain.floors import priced
from allotrope.explain.formats import formats
from allotrope.explain.rehearse import Rehearsal, chosen, tactic_for
from allotrope.explain.session import Setting
from allotrope.runtime.program import rows_of
from allotrope.runtime.step import Seconds
from allotrope.units import time_text

_PACE = (0.5, 4.0)  # beyond, the machine was busy with something else
_LOOKED_UP = ("embed", "add_positions")


@dataclass(frozen=True)
class Sizes:
    """A step: rows of each kind, whose they are, how long the longest is after it; and how many there are of it."""

    rows: dict[str, int]
    requests: int
    context: int
    steps: float

    def load(self, plan: Plan, call: Call, page_size: int) -> Load:
        """Of one call."""
        return Load(self.rows[rows_of(plan, call)], self.requests, self.context, page_size)


@dataclass(frozen=True)
class Predicted:
    """A change's prediction; times in ms, of the whole run unless the name says otherwise."""

    change: str
    formats: dict[str, Any]
    asked: dict[str, int]
    words: str
    total_ms: float
    t_ctx_ms: float
    t_gen_ms: float
    step_ms: float | None
    saved_step_ms: float | None
    tactics: dict[str, str]
    overhead_us: float
    pace: float
    timed: int  # tactics that were timed for it; the others were known

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def predict(found: Explained, change: Change, setting: Setting, rehearsal: Rehearsal) -> Predicted:
    """What the engine would take with this change, from what was found of it."""
    accounted, plan = found.account, found.manifest.plan
    if accounted.whole_s:
        raise UsageError(
            "recorded steps cannot be predicted: their calls are not told apart", remedy="add --executor eager"
        )
    asked, changed = change.asked(found.asked), change.plan(plan)
    options = replace(BuildOptions.of(**found.manifest.options), executor=_graph(found))
    changed, timed = chosen(changed, plan, options, setting.device, _threads(found))
    before, after = (sizes(one, setting.options.max_batched_tokens) for one in (found.asked, asked))
    rehearsed = (plan, changed, rehearsal, setting.options.page_size)
    context = _Phase(*rehearsed, before[0], after[0], found.step_s(True))
    decode = _Phase(*rehearsed, before[1], after[1], found.step_s(False))
    t_ctx, t_gen = context.spent(accounted.context), decode.spent(accounted.decode)
    steps = accounted.decode.steps
    step, own = (t_gen / steps, accounted.decode.wall_s / steps) if steps else (None, None)
    main = decode if steps else context
    return Predicted(
        change=change.words,
        formats=formats(changed),
        asked={"batch": asked.batch, "input": asked.into, "output": asked.output},
        words=_words(change, changed, found.asked, asked, (accounted.context.wall_s, own), (t_ctx, step)),
        total_ms=1e3 * (t_ctx + t_gen),
        t_ctx_ms=1e3 * t_ctx,
        t_gen_ms=1e3 * t_gen,
        step_ms=None if step is None else 1e3 * step,
        saved_step_ms=None if step is None or own is None else 1e3 * (own - step),
        tactics={short(changed.calls[place].path): main.tactic(place) for place in main.differing},
        overhead_us=1e6 * main.overhead(),
        pace=main.pace(main.differing),
        timed=timed,
    )


def sizes(asked: Asked, budget: int) -> tuple[Sizes, Sizes]:
    """A step that reads prompts, and one that decodes, in the middle of the answer."""
    tokens, batch = asked.batch * asked.into, asked.batch
    steps = -(-tokens // budget)
    rows = {TOKENS: -(-tokens // steps), LOGITS: batch, SAMPLES: batch}
    reading = Sizes(rows, min(batch, rows[TOKENS]), asked.into, steps)
    middle = asked.into + max(asked.output // 2, 1)
    return reading, Sizes({TOKENS: batch, LOGITS: batch, SAMPLES: batch}, batch, middle, max(asked.output - 1, 0))


@dataclass
class _Phase:
    """Steps of one kind, before and after the change."""

    plan: Plan
    changed: Plan
    rehearsal: Rehearsal
    page_size: int
    before: Sizes
    after: Sizes
    step_s: Seconds | None  # as measured, per call; None: there was no such step

    def __post_init__(self) -> None:
        self.differing = [
            place
            for place, (call, other) in enumerate(zip(self.plan.calls, self.changed.calls, strict=True))
            if self._posed(self.plan, call, self.before) != self._posed(self.changed, other, self.after)
        ]
        self._held = tuple(_held(plan, at) for plan, at in ((self.plan, self.before), (self.changed, self.after)))

    def spent(self, phase: Phase) -> float:
        """The phase's time, with that of the differing calls replaced."""
        if self.step_s is None:
            return phase.wall_s
        return phase.wall_s - float(phase.call_s[self.differing].sum()) + self.after.steps * sum(self.predicted())

    def predicted(self) -> list[float]:
        """The differing calls' seconds in a step."""
        overhead, found = self.overhead(), list[float]()
        for kind in (_multiplies, _attends, _is_small):
            mine = [place for place in self.differing if kind(self.plan.calls[place])]
            pace = 1.0 if kind is _is_small else self.pace(mine)
            found += [max(overhead + pace * self._then(place), 0.0) for place in mine]
        return found

    def overhead(self) -> float:
        """What the executor adds to a call, by the small ones."""
        took = [] if self.step_s is None else self.step_s.tolist()
        small = [place for place, seconds in enumerate(took) if seconds and _is_small(self.plan.calls[place])]
        return statistics.median([took[place] - self._now(place) for place in small]) if small else 0.0

    def pace(self, places: Sequence[int]) -> float:
        """How much longer these calls take in the model than in a rehearsal, the overhead apart."""
        heavy = [place for place in places if not _is_small(self.plan.calls[place])]
        rehearsed = sum(self._now(place) for place in heavy)
        if not rehearsed or self.step_s is None:
            return 1.0
        own = float(self.step_s[heavy].sum()) - len(heavy) * self.overhead()
        return min(max(own / rehearsed, _PACE[0]), _PACE[1])

    def tactic(self, place: int) -> str:
        """That of a changed call."""
        call = self.changed.calls[place]
        return tactic_for(call, self.after.rows[rows_of(self.changed, call)])

    def _now(self, place: int) -> float:
        call = self.plan.calls[place]
        return self.rehearsal.seconds(self.plan, call, self.before.load(self.plan, call, self.page_size), self._held[0])

    def _then(self, place: int) -> float:
        call = self.changed.calls[place]
        load = self.after.load(self.changed, call, self.page_size)
        return self.rehearsal.seconds(self.changed, call, load, self._held[1])

    def _posed(self, plan: Plan, call: Call, sizes: Sizes) -> tuple[str, str]:
        load = sizes.load(plan, call, self.page_size)
        return problem(plan, call, load).key(), tactic_for(call, load.rows)


def _held(plan: Plan, sizes: Sizes) -> float:
    """Bytes that a step reads and that were not touched since the last one."""
    found = 0.0
    for call in plan.calls:
        if call.op == "attention":
            found += sizes.requests * priced(plan, call, 1, sizes.context).cold
        elif weight_slots(call):
            found += priced(plan, call, sizes.rows[rows_of(plan, call)], sizes.context).cold
    return found


def _multiplies(call: Call) -> bool:
    return call.op.startswith("linear")


def _attends(call: Call) -> bool:
    return call.op == "attention"


def _is_small(call: Call) -> bool:
    return not _multiplies(call) and not _attends(call)


def _graph(found: Explained) -> str:
    return "graph" if found.executor == "graph" else "eager"


def _threads(found: Explained) -> int:
    import torch

    return found.threads or torch.get_num_threads()


def _words(
    change: Change,
    plan: Plan,
    before: Asked,
    after: Asked,
    own: tuple[float, float | None],
    then: tuple[float, float | None],
) -> str:
    """In one sentence: per step where something is decoded, else until the first token."""
    what = described(plan) if set(change.given) - {"batch"} else f"{after.batch} prompts at a time"
    (first, step), (later, step_later) = own, then
    begun = f"first token after {time_text(later)} instead of {time_text(first)}"
    if step is None or step_later is None:
        return f"{what}: {begun}, by an estimate."
    if after.batch != before.batch:
        rate, was = after.batch / step_later, before.batch / step
        return (
            f"{what}: an estimated {time_text(step_later)} a step, {rate:.3g} tokens/s instead of {was:.3g}; {begun}."
        )
    saved = step - step_later
    verb = "would save" if saved >= 0 else "would cost"
    return (
        f"{what} {verb} an estimated {time_text(abs(saved))} a token "
        f"({time_text(step)} → {time_text(step_later)}); {begun}."
    )
