"""What a change would do, before it is made: the plan that a build would choose, rehearsed beside what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allotrope.artifact.plan import Call, Plan
from allotrope.errors import UsageError
from allotrope.explain.account import Phase
from allotrope.explain.changes import Change
from allotrope.explain.drive import Asked
from allotrope.explain.explanation import Explained, short
from allotrope.explain.formats import formats
from allotrope.explain.rehearse import rehearse
from allotrope.explain.session import Setting
from allotrope.units import time_text


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
    timed: int  # tactics that were timed for it; the others were known

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def predict(folder: Path, found: Explained, change: Change, setting: Setting) -> Predicted:
    """What the engine would take with this change, by a rehearsal of the plan that it would have."""
    accounted, plan = found.account, found.manifest.plan
    if accounted.whole_s:
        problem = "recorded steps cannot be predicted: their calls are not told apart"
        raise UsageError(problem, remedy="add --executor eager, or --predict none")
    asked, changed, timed = change.asked(found.asked), plan, 0
    outline = change.outline(found.manifest, setting.device.kind)
    if outline is not None:
        changed, timed = outline.chosen(setting.device, _threads(found))
    run = rehearse(folder, found.manifest, changed, asked, setting.options, setting.device, setting.seed)
    t_ctx, t_gen = run.answering - run.began, run.ended - run.answering
    steps = sum(not one.context for one in run.seen.steps)
    own = accounted.decode.wall_s / accounted.decode.steps if accounted.decode.steps else None
    step = t_gen / steps if steps else None
    return Predicted(
        change=change.words,
        formats=formats(changed),
        asked={"batch": asked.batch, "input": asked.into, "output": asked.output},
        words=_words(change.told(changed), found, asked.batch, t_ctx, step),
        total_ms=1e3 * (t_ctx + t_gen),
        t_ctx_ms=1e3 * t_ctx,
        t_gen_ms=1e3 * t_gen,
        step_ms=None if step is None else 1e3 * step,
        saved_step_ms=None if step is None or own is None else 1e3 * (own - step),
        tactics=_new(plan, changed, asked),
        timed=timed,
    )


def _new(plan: Plan, changed: Plan, asked: Asked) -> dict[str, str]:
    """The tactics of calls that the plan has not had, by kind of call, while decoding."""
    before = {(call.path, call.op, call.tactics) for call in plan.calls}
    new = [call for call in changed.calls if (call.path, call.op, call.tactics) not in before]
    return {short(call.path): tactic_for(call, asked.batch) for call in new}


def tactic_for(call: Call, rows: int) -> str:
    """The tactic that serves so many rows."""
    return next(name for bound, name in call.tactics if bound is None or rows <= bound)


def _threads(found: Explained) -> int:
    import torch

    return found.threads or torch.get_num_threads()


def _words(what: str, found: Explained, batch: int, first: float, step: float | None) -> str:
    """In one sentence: per step where something is decoded, else until the first token."""
    context, decode = found.account.context, found.account.decode
    begun = f"first token after {time_text(first)} instead of {time_text(context.wall_s)}"
    if step is None:
        return f"{what}: {begun}, by an estimate."
    own = _each(decode)
    if batch != found.asked.batch:
        rates = f"{_rate(batch / step)} tokens/s instead of {_rate(found.asked.batch / own)}"
        return f"{what}: an estimated {time_text(step)} a step, {rates}; {begun}."
    verb = "would save" if own >= step else "would cost"
    change = f"{time_text(own)} → {time_text(step)}"
    return f"{what} {verb} an estimated {time_text(abs(own - step))} a token ({change}); {begun}."


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 1000 else f"{per_s:.4g}"


def _each(phase: Phase) -> float:
    return phase.wall_s / max(phase.steps, 1)
