"""What a change would do, before it is made: the plan that a build would choose, beside the one that was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from allotrope.errors import UsageError
from allotrope.explain.account import Phase
from allotrope.explain.changes import Change
from allotrope.explain.explanation import Explained, short
from allotrope.explain.formats import formats
from allotrope.explain.rehearse import Rehearsal
from allotrope.explain.scenes import Changed, Scene, attends, multiplies, sizes
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
        problem = "recorded steps cannot be predicted: their calls are not told apart"
        raise UsageError(problem, remedy="add --executor eager, or --predict none")
    asked, changed, timed = change.asked(found.asked), plan, 0
    outline = change.outline(found.manifest, setting.device.kind)
    if outline is not None:
        changed, timed = outline.chosen(setting.device, _threads(found))
    budget, page = setting.options.max_batched_tokens, setting.options.page_size
    pairs = zip(sizes(found.asked, budget), sizes(asked, budget), (True, False), strict=True)
    context, decode = (
        Changed(Scene(plan, before, rehearsal, page), Scene(changed, after, rehearsal, page), found.step_s(kind))
        for before, after, kind in pairs
    )
    t_ctx, t_gen, steps = context.spent(accounted.context), decode.spent(accounted.decode), accounted.decode.steps
    step, own = (t_gen / steps, accounted.decode.wall_s / steps) if steps else (None, None)
    main = decode if steps else context
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
        tactics={short(changed.calls[place].path): main.after.tactic(place) for place in main.new},
        overhead_us=1e6 * main.overhead(),
        pace=main.pace(multiplies if any(multiplies(plan.calls[place]) for place in main.gone) else attends),
        timed=timed,
    )


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
        rates = f"{batch / step:.4g} tokens/s instead of {found.asked.batch / own:.4g}"
        return f"{what}: an estimated {time_text(step)} a step, {rates}; {begun}."
    verb = "would save" if own >= step else "would cost"
    change = f"{time_text(own)} → {time_text(step)}"
    return f"{what} {verb} an estimated {time_text(abs(own - step))} a token ({change}); {begun}."


def _each(phase: Phase) -> float:
    return phase.wall_s / max(phase.steps, 1)
