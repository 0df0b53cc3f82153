"""An explanation in sentences, each computed from the figures: what takes the time, how far that is from the limit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call
from allotrope.explain.account import IDLE, WHOLE, Phase
from allotrope.explain.explanation import Explained
from allotrope.runtime.program import rows_of
from allotrope.runtime.scheduler import MOST_REPEATS
from allotrope.units import bytes_text, time_text

_WORTH = 0.02  # of the time: less is not worth a sentence
_CALLING_S = 20e-6  # a call that is over sooner has done little but be called
_SMALL = 2  # axes of a weight below which it is no matrix


def sentences(found: Explained) -> list[str]:
    """Of the whole, of the slowest kinds of work, of the host, of the clocks."""
    if found.account.whole_s:
        return [*_whole(found), *_recorded(found), *_host(found), _clocks(found)]
    return [*_whole(found), *_work(found), *_rivals(found), *_host(found), _clocks(found)]


def _whole(found: Explained) -> Iterator[str]:
    account, asked = found.account, found.asked
    answers = "One answer" if asked.batch == 1 else f"{asked.batch} answers"
    yield (
        f"{answers} of {asked.output} tokens to {asked.into} took {time_text(account.total_s)}: "
        f"{time_text(account.context.wall_s)} until the first token ({_steps(account.context)})"
        + (
            f", {time_text(account.decode.wall_s)} for the rest, {time_text(_each(account.decode))} a step"
            * bool(_rest(found))
        )
        + "."
    )
    floors = account.floors_s
    if floors is not None:
        share = float(floors.sum()) / account.total_s
        yield f"The least that the machine could take is {time_text(float(floors.sum()))}: {share:.1%} of its limit."
        if found.ceilings is not None and found.threads is not None and found.threads != found.ceilings.threads:
            yield f"The limit was measured with {found.ceilings.threads} threads; here {found.threads} ran."
    else:
        yield "How fast it could be is not known here: run allotrope doctor --measure."


def _work(found: Explained) -> Iterator[str]:
    """What decoding does; what reading the prompt does, where nothing is decoded."""
    phase = found.account.decode if _rest(found) else found.account.context
    where = "" if phase is found.account.decode else " of the prompt"
    plan = found.manifest.plan
    kinds = {"reading weights": _multiplies, "attention": _attends, "drawing tokens": _draws}
    named = np.zeros(len(plan.calls), bool)
    for words, belongs in kinds.items():
        mine = np.array([belongs(call, found) for call in plan.calls])
        named |= mine
        share = float(phase.call_s[mine].sum()) / phase.wall_s
        if share >= _WORTH or words == "reading weights":
            yield f"{words.capitalize()}{where}: {share:.0%} of the time{_pace(found, phase, mine)}."
    rest = float(phase.call_s[~named].sum())
    if rest >= _WORTH * phase.wall_s:
        count = int(np.count_nonzero(~named & (phase.call_s > 0)))
        each = rest / max(count * phase.steps, 1)
        yield (
            f"The {count} other calls of a step (norms, additions, …) take {rest / phase.wall_s:.0%} of the time, "
            f"{time_text(each)} each: mostly what calling costs."
            if each < _CALLING_S
            else f"The {count} other calls of a step (norms, additions, …) take {rest / phase.wall_s:.0%} of the time."
        )


def _pace(found: Explained, phase: Phase, mine: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    """How far some calls are from what the machine can do: by what they read, or by what they compute."""
    took, moved = float(phase.call_s[mine].sum()), float(phase.cold[mine].sum())
    if found.ceilings is None or phase.floor_s is None or not moved or not took:
        return ""
    rate = found.ceilings.read_rate(phase.held)
    reading = moved / rate
    if float(phase.floor_s[mine].sum()) > 1.2 * reading:
        return f" at {float(phase.floor_s[mine].sum()) / took:.0%} of what the cores can multiply"
    cached = rate > found.ceilings.read_bytes_per_s
    where = f"the cache ({bytes_text(phase.held)} a step stay there)" if cached else "the memory"
    return f" at {reading / took:.0%} of what {where} can do"


def _rivals(found: Explained) -> Iterator[str]:
    """What rows that depend on nothing but themselves cost, by the times of tuning."""
    rows = found.rows.get("decode")
    if rows is None:
        return
    evidence, plan, decode = found.evidence, found.manifest.plan, found.account.decode
    shares = [evidence.passed_over(call, rows[rows_of(plan, call)]) for call in plan.calls]
    saved = float((decode.call_s * shares).sum()) / max(decode.steps, 1)
    if saved >= _WORTH * _each(decode):
        yield (
            f"--allow-batch-variance would save about {time_text(saved)} a step, by the times taken at the build: "
            "faster tactics whose bits depend on the other rows."
        )


def _recorded(found: Explained) -> Iterator[str]:
    share = found.account.whole_s / found.account.total_s
    yield (
        f"{WHOLE.capitalize()}: {share:.0%} of the time. They are repeated whole, and no clock looks inside; "
        "--executor eager tells their calls apart."
    )


def _host(found: Explained) -> Iterator[str]:
    account = found.account
    gaps = {name: took for name, took in account.gaps.items() if took > 0}
    total = sum(gaps.values())
    largest = sorted(gaps.items(), key=lambda one: -one[1])[:3]
    told = ", ".join(f"{name} {took / account.total_s:.1%}" for name, took in largest)
    idle = "The device stood still and the host worked" if IDLE in gaps else "Around the calls the host worked"
    yield f"{idle} for {total / account.total_s:.1%} of the time: {told}."
    if found.executor == "native" and _rest(found):
        yield f"Each step is looked at here; where answers are made, up to {MOST_REPEATS} share what the host does."
    yield f"Not accounted for: {account.unaccounted_s / account.total_s:.1%}."


def _clocks(found: Explained) -> str:
    cost, runs = found.observer_ms, len(found.runs.timed)
    spread = f"{runs} pairs of runs gave {cost['least']:+.1%} to {cost['most']:+.1%}"
    if cost["least"] < 0 < cost["most"]:
        return (
            f"What the clocks themselves cost cannot be told from noise: {spread}, {cost['cost']:+.1%} in the middle."
        )
    return f"The clocks themselves cost {cost['cost']:.1%}: {spread}."


def _rest(found: Explained) -> int:
    return found.account.decode.steps


def _each(phase: Phase) -> float:
    return phase.wall_s / max(phase.steps, 1)


def _steps(phase: Phase) -> str:
    return f"{phase.steps} step" + "s" * (phase.steps != 1)


def _multiplies(call: Call, found: Explained) -> bool:
    """Whether it reads a matrix, and not only rows of one."""
    plan = found.manifest.plan
    weights = [plan.weights[plans.name(slot)] for slot in call.ins.values() if plans.kind(slot) == "w"]
    looked_up = call.op.startswith("embed") or call.op == "add_positions"
    return not looked_up and any(len(weight.parts[0][1]) >= _SMALL for weight in weights)


def _attends(call: Call, found: Explained) -> bool:
    return call.op == "attention"


def _draws(call: Call, found: Explained) -> bool:
    return call.op == "sample"
