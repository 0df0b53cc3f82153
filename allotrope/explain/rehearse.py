"""Calls timed outside of any model, so that a tactic's pace is known before an engine has it.

Weights are rotated among as many copies as a step of the model reads in all: what a cache keeps there, it keeps here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.build import choose
from allotrope.build.options import BuildOptions
from allotrope.build.stage import Stage
from allotrope.build.tasks import Task, tasks
from allotrope.build.timings import Timings
from allotrope.build.tune import Tuner
from allotrope.errors import BuildError
from allotrope.hw.device import Device
from allotrope.hw.timer import time_calls
from allotrope.ops import registry

_VALUES = 1 << 22  # of a weight matrix that is made up; the rest repeats it
_SAMPLES, _BUDGET_S = 7, 0.15


@dataclass
class Rehearsal:
    """Times calls, each distinct one once."""

    device: Device
    seed: int = 0
    _known: dict[tuple[str, str, int], float] = field(default_factory=dict)

    def seconds(self, plan: Plan, call: Call, load: Load, held: float) -> float:
        """How long the call takes under this load, with weights as cold as among `held` bytes."""
        tactic = tactic_for(call, load.rows)
        posed = problem(plan, call, load)
        cold = 2 ** math.ceil(math.log2(max(held, 1.0)))  # alike for plans that are nearly alike
        key = (tactic, posed.key(), cold)
        if key not in self._known:
            with torch.inference_mode():
                stage = Stage.of(posed, self.device, self.seed, _VALUES)
                run = stage.call(registry.tactic(call.op, tactic), int(held))
                timing = time_calls(run, self.device, samples=_SAMPLES, budget_s=_BUDGET_S)
            self._known[key] = min(timing.samples)
        return self._known[key]


def tactic_for(call: Call, rows: int) -> str:
    """The tactic that serves so many rows."""
    return next(name for bound, name in call.tactics if bound is None or rows <= bound)


def chosen(plan: Plan, before: Plan, options: BuildOptions, device: Device, threads: int) -> tuple[Plan, int]:
    """The plan with the tactics that a build would choose for calls that `before` has not; how many were timed now.

    What is timed is kept, so that a build that follows need not.
    """
    same = {task.key for task in tasks(before, options.tune, options.executor == "graph")}
    tuner = Tuner(device, options, Timings.load(device, threads))
    found: dict[str, tuple[tuple[int | None, str], ...]] = {}
    for task in tasks(plan, options.tune, options.executor == "graph"):
        if task.key not in same:
            found |= dict.fromkeys(task.paths, _line(task, tuner, options))
    tuner.timings.save()
    calls = tuple(
        Call(**{**vars(call), "tactics": found[call.path]}) if call.path in found else call for call in plan.calls
    )
    return Plan(**{**vars(plan), "calls": calls}), tuner.timed


def _line(task: Task, tuner: Tuner, options: BuildOptions) -> tuple[tuple[int | None, str], ...]:
    trials = tuner.trials(task)
    lines: Sequence[choose.Line] = choose.lines(trials, any_class=options.allow_batch_variance)
    line = choose.best_line(lines)
    if line is None:
        refusals = "; ".join(f"{trial.tactic}: {trial.refusal}" for trial in trials[0] if trial.refusal)
        raise BuildError(f"no tactic would serve it ({refusals})", where=f"op {task.op}")
    return choose.collapse([bound for bound, _ in task.buckets], line)
