"""Trying tactics: refuse, check numerics, then time the survivors. What is found here, `choose` decides on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from allotrope.build.choose import Trial
from allotrope.build.options import BuildOptions
from allotrope.build.stage import Stage, shrunk
from allotrope.build.tasks import DECODE_ROWS, Task
from allotrope.build.timings import Measured, Timings
from allotrope.hw.device import Device
from allotrope.hw.timer import Timing, in_graphs, time_calls, time_runs
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic
from allotrope.ops.tactic import Tactic

# The largest weight matrix, in values, on which numerics are checked: its fp64 truth is eight bytes a value.
_CHECKED_VALUES = {"full": 1 << 24, "fast": 1 << 22, "off": 1 << 19}
_PROVEN_ROWS = {"full": 512, "fast": 512, "off": 64}  # among which a row must keep its bits
_SAMPLES = {"full": 9, "fast": 3}
_BUDGET_S = {"full": 0.5, "fast": 0.1}
_LEAST_NOISE = 0.02  # of a timing: two builds should not differ over less
_HOPELESS = 3.0  # so many times slower than another tactic: not worth more samples
MOST_ROWS = 8192  # that a tactic without a bound must be able to serve, for a runtime may ask for as many
_SHORT_S = 2e-4  # of a sample inside the core, which no Python delays: short ones are seldom disturbed
_RECORDED = 32  # calls in a graph that is timed
_RAISED = (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError)  # what torch raises, out of memory too

Checked = dict[tuple[str, str], check.CheckResult]


@dataclass
class Tuner:
    """Tries tactics on tasks, each distinct problem once."""

    device: Device
    options: BuildOptions
    timings: Timings
    advance: Callable[[], None] = lambda: None
    timed: int = 0  # how many timings were taken, and how many were known from earlier builds
    reused: int = 0
    checked: Checked = field(default_factory=dict)  # by tactic and problem; builds of one process may share it

    def trials(self, task: Task) -> tuple[tuple[Trial, ...], ...]:
        """For each bucket of the task, a trial of every tactic, in listing order."""
        found, least = [], 1
        for (bound, _), problem in zip(task.buckets, task.problems, strict=True):
            ends = with_rows(problem, least), with_rows(problem, bound or MOST_ROWS)
            found.append(self._bucket(problem, ends))
            least = (bound or MOST_ROWS) + 1
            self.advance()
        return tuple(tuple(trials) for trials in found)

    def prove(self, task: Task, tactics: tuple[str, ...]) -> str | None:
        """Why these tactics, of one row class, do not give a row the same bits in any company; None if they do.

        A library may pick its kernel by shape and by machine, so nobody's word is taken for it: untuned too,
        and where batch variance is allowed, so that the plan says truly what was given up.
        """
        effort, seed = self.options.tune, self.options.seed
        first, *others = (registry.tactic(task.op, name) for name in dict.fromkeys(tactics))
        small = shrunk(task.problems[0], _CHECKED_VALUES[effort])
        if self.timings.is_proven([first, *others], small, effort):
            return None
        try:
            reason = check.check_rows(first, small, self.device, seed, among=others, most=_PROVEN_ROWS[effort])
        except _RAISED as error:
            reason = _words(error)
        if reason is None:
            self.timings.add_proven([first, *others], small, effort)
        return reason

    def _bucket(self, problem: Problem, ends: tuple[Problem, Problem]) -> list[Trial]:
        tactics = registry.tactics(problem.op)
        trials = [self._refused(tactic, problem, ends) for tactic in tactics]
        if any(trial.refusal is None for trial in trials):
            trials = self._check(tactics, trials, problem)
        effort, usable = self.options.tune, [trial for trial in trials if trial.refusal is None]
        if effort == "off" or not usable:
            return trials
        return self._time(tactics, trials, problem, effort)

    def _refused(self, tactic: Tactic, problem: Problem, ends: tuple[Problem, Problem]) -> Trial:
        """The tactic's own answer, and the user's. It must serve the bucket's fewest and most rows, too."""
        packings = tuple(sorted(tactic.packings().items()))
        trial = Trial(tactic.name, tactic.version, None, packings, capturable=tactic.capturable)
        names = {tactic.name, f"{problem.op}/{tactic.name}", *(["native"] if _native(tactic) else [])}
        if _native(tactic) and self.options.executor != "native":
            return replace(trial, refusal=f"built for the {self.options.executor} executor")
        if names & set(self.options.without):
            return replace(trial, refusal="taken out with --without")
        reason = next((why for one in (problem, *ends) if (why := tactic.why_not(one, self.device))), None)
        if reason is not None:
            return replace(trial, refusal=reason)
        return replace(trial, row_class=tactic.row_class(problem, self.device))

    def _check(self, tactics: tuple[Tactic, ...], trials: list[Trial], problem: Problem) -> list[Trial]:
        small = shrunk(problem, _CHECKED_VALUES[self.options.tune])
        case = None
        results = []
        for tactic, trial in zip(tactics, trials, strict=True):
            if trial.refusal is not None:
                results.append(trial)
                continue
            key = (tactic.name, small.key())
            if key not in self.checked:
                case = case or check.prepare(small, self.device, self.options.seed)
                self.checked[key] = _checked(tactic, case)
            result = self.checked[key]
            refusal = None if result.ok else f"wrong: {result.reason} (error {result.max_error:.3g})"
            results.append(replace(trial, refusal=refusal, max_error=result.max_error, floor_error=result.e0_max))
        return results

    def _time(self, tactics: tuple[Tactic, ...], trials: list[Trial], problem: Problem, effort: str) -> list[Trial]:
        stage = None
        best = math.inf
        results = []
        for tactic, trial in zip(tactics, trials, strict=True):
            if trial.refusal is not None:
                results.append(trial)
                continue
            recorded = self._recorded(tactic, problem)
            how = f"{effort} recorded" if recorded else f"{effort} in a step" if _native(tactic) else effort
            measured = self.timings.get(tactic, problem, how)
            if measured is None:
                stage = stage or Stage.of(problem, self.device, self.options.seed, _CHECKED_VALUES[effort])
                measured = self._measure(stage, tactic, effort, best, recorded)
                self.timings.add(tactic, problem, how, measured)
                self.timed += 1
            else:
                self.reused += 1
            best = min(best, measured.seconds)
            results.append(replace(trial, measured=measured))
        return results

    def _recorded(self, tactic: Tactic, problem: Problem) -> bool:
        """Whether the tactic will run as part of a graph, and so is timed as one: without what launching costs."""
        decodes = problem.axes[registry.contract(problem.op).rows] <= DECODE_ROWS
        return self.options.executor == "graph" and self.device.kind == "cuda" and tactic.capturable and decodes

    def _measure(self, stage: Stage, tactic: Tactic, effort: str, best: float, recorded: bool) -> Measured:
        """Time a tactic; one that is far behind the best so far is timed but roughly.

        The least of the samples is taken, for other processes only ever add to it, and its distance to the
        next one is the noise: a median would judge the machine's other work along with the tactic.
        """
        import torch

        with torch.inference_mode():
            each = _RECORDED if recorded else 1
            timed = self._timed(stage, tactic, recorded)
            samples = timed(samples=1, min_sample_s=0.0).samples
            if samples[0] < _HOPELESS * best * each:
                samples = timed(samples=_SAMPLES[effort], budget_s=_BUDGET_S[effort]).samples
        least, *others = sorted(sample / each for sample in samples)
        return Measured(least, max(_LEAST_NOISE * least, min(others, default=least) - least))

    def _timed(self, stage: Stage, tactic: Tactic, recorded: bool) -> Callable[..., Timing]:
        """Times the tactic as it will run: the core's among others of its step, whose threads are awake; recorded, as
        part of a graph; else call by call."""
        if isinstance(tactic, NativeTactic):
            return partial(time_runs, stage.series(tactic), min_sample_s=_SHORT_S)
        call = stage.call(tactic)
        return partial(time_calls, in_graphs(call, _RECORDED) if recorded else call, self.device)


def with_rows(problem: Problem, rows: int) -> Problem:
    """The problem with so many rows."""
    return replace(problem, axes={**problem.axes, registry.contract(problem.op).rows: rows})


def _checked(tactic: Tactic, case: check.Case) -> check.CheckResult:
    """The worse of strided and dense; a tactic that raises is as wrong as one that errs."""
    try:
        results = [check.check_case(tactic, case, strided=strided) for strided in (True, False)]
    except _RAISED as error:
        return check.CheckResult(False, math.inf, math.inf, 0.0, 0.0, _words(error))
    return max(results, key=lambda result: (not result.ok, result.max_error))


def _native(tactic: Tactic) -> bool:
    return isinstance(tactic, NativeTactic)


def _words(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
