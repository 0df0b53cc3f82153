"""Into which cache the native core fetches weights ahead: its largest layer, timed both ways in turns.

A CPU keeps more of memory busy by way of the nearest cache or of the second, and which, neither its name nor its
instructions say for certain; no bit depends on it. Two things are not timed here: tiles, whose sizes were measured once
for each instruction set and are compiled in (`native/core/tiles.h`), and threads: other processes come and go, so a
running program asks again all the time how many are fastest (`native/core/pace.h`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

from allotrope import native
from allotrope.artifact.manifest import FETCH
from allotrope.artifact.plan import Plan
from allotrope.build.options import BuildOptions
from allotrope.build.stage import Stage
from allotrope.build.tasks import Task, tasks
from allotrope.hw.device import Device
from allotrope.hw.timer import Run
from allotrope.ops import registry
from allotrope.ops.native import NativeTactic

NEAR, FAR = FETCH
_ROUNDS = {"full": 25, "fast": 9}
_BUDGET_S = 1.0  # after which no further round begins
_TURN_S = 0.005  # more than it takes to read all that the stage has of weights, so that none is still in a cache
_LEAST_GAIN = 0.02  # below that the guess for such CPUs stands, so that two builds agree
_MOST_VALUES = 1 << 22  # of a weight that is drawn at random; the rest repeats it


def timed(plan: Plan, device: Device, options: BuildOptions) -> dict[str, Any] | None:
    """The choice, and what it rests on; None where there is no layer to time."""
    largest = max((task for task in tasks(plan, options.tune) if _is_layer(plan, task)), key=_bytes, default=None)
    if largest is None:
        return None
    tactic = _tactic(plan, largest)
    stage = Stage.of(largest.problems[0], device, options.seed, _MOST_VALUES)
    found = compared(stage.series(tactic), native.find().core, _ROUNDS[options.tune])
    return {**found, "path": largest.paths[0]}


def compared(run: Run, core: Any, rounds: int) -> dict[str, Any]:
    """Both ways in turns, beginning with each in turn; seconds of a call are medians."""
    calls, place = 1, 0
    for _ in range(3):  # the first pays for what happens once
        calls = max(1, min(10_000, math.ceil(_TURN_S / max(run(place, calls) / calls, 1e-9))))
        place += calls
    took: dict[str, list[float]] = {NEAR: [], FAR: []}
    began = time.perf_counter()
    try:
        for round_ in range(rounds):
            for way in (NEAR, FAR) if round_ % 2 else (FAR, NEAR):
                core.fetch(way == NEAR)
                took[way].append(run(place, calls) / calls)
                place += calls
            if len(took[FAR]) >= 5 and time.perf_counter() - began > _BUDGET_S:
                break
    finally:
        core.fetch(core.fetches_near)
    return chosen(took, NEAR if core.fetches_near else FAR)


def chosen(took: Mapping[str, list[float]], guess: str) -> dict[str, Any]:
    """The other way, if it is faster than the guess by more than turns differ by chance."""
    other = FAR if guess == NEAR else NEAR
    gains = sorted(a / b - 1.0 for a, b in zip(took[guess], took[other], strict=True))
    quarter = len(gains) // 4
    noise = max(_LEAST_GAIN, (gains[-1 - quarter] - gains[quarter]) / 2.0)
    gain = statistics.median(gains)
    medians = {way: statistics.median(seconds) for way, seconds in took.items()}
    found = {"guess": guess, **medians, "gain": gain, "noise": noise, "rounds": len(gains)}
    return {"choice": other if gain > noise else guess, **found}


def _is_layer(plan: Plan, task: Task) -> bool:
    return task.op.startswith("linear") and isinstance(_tactic(plan, task), NativeTactic)


def _tactic(plan: Plan, task: Task) -> Any:
    """What its calls' fewest rows are computed with."""
    call = next(call for call in plan.calls if call.path == task.paths[0])
    return registry.tactic(task.op, call.tactics[0][1])


def _bytes(task: Task) -> float:
    """Read by all of its calls for one row."""
    return registry.contract(task.op).cost(task.problems[0]).bytes * len(task.paths)
