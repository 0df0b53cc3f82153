"""Whether a plan is the native core's: where every call can be, all are, so that a step is one call into it.

Tactics of other libraries that are faster at single calls stand as runners-up in the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from allotrope.build import choose
from allotrope.build.choose import Line, Trial
from allotrope.build.options import BuildOptions
from allotrope.build.tasks import Task
from allotrope.errors import BuildError
from allotrope.ops import registry
from allotrope.ops.native import NativeTactic

Trials = tuple[tuple[Trial, ...], ...]
Lines = Mapping[str, tuple[Task, Trials, Line]]
_NOT_WHOLE = "the native core does not compute the whole step"
Best = Callable[[list[tuple[Task, Trials]], BuildOptions], dict[str, tuple[Task, Trials, Line]]]


def lines(found: list[tuple[Task, Trials]], options: BuildOptions, best: Best) -> dict[str, tuple[Task, Trials, Line]]:
    """The best lines of the core's own tactics, one per call; nothing if some call has none, or nobody asks."""
    if options.executor != "native":
        return {}
    own = [(task, tuple(tuple(filter(_own(task.op), bucket)) for bucket in trials)) for task, trials in found]
    if not all(choose.lines(trials, any_class=options.allow_batch_variance) for _, trials in own):
        return {}
    try:
        chosen = best(own, options)
    except BuildError:  # readers of one weight want it packed in different ways
        return {}
    everything = {task.key: trials for task, trials in found}
    return {path: (task, everything[task.key], line) for path, (task, _, line) in chosen.items()}


def apart(found: list[tuple[Task, Trials]], options: BuildOptions) -> list[tuple[Task, Trials]]:
    """The trials of a plan that is not the core's: its kernels are refused, for its threads and torch's would take
    the same cores. Where parts were named, what they leave stands as it is: an ablation changes these alone."""
    if options.executor != "native" or options.without or options.plan == "reference":
        return found
    return [
        (task, _changed(task, trials, lambda trial: replace(trial, refusal=trial.refusal or _NOT_WHOLE)))
        for task, trials in found
    ]


def serves(chosen: Lines) -> bool:
    """Whether every call's line is the core's."""
    return all(_own(task.op)(trial) for task, _, line in chosen.values() for trial in line.trials)


def obstacle(chosen: Lines, options: BuildOptions) -> str:
    """Why the plan is not the core's, as a sentence that names the first call in the way."""
    if options.executor != "native":
        return f"built for the {options.executor} executor"
    for path, (task, trials, _) in chosen.items():
        given = _changed(task, trials, lambda t: replace(t, refusal=None) if t.refusal == _NOT_WHOLE else t)
        own = tuple(tuple(filter(_own(task.op), bucket)) for bucket in given)
        if not choose.lines(own, any_class=options.allow_batch_variance):
            told = next((trial.refusal or trial.note for bucket in own for trial in bucket if not _usable(trial)), None)
            return f"{path}: {told or f'the native core has no {task.op}'}"
    return "the readers of a weight want it packed in different ways"


def _usable(trial: Trial) -> bool:
    return trial.refusal is None and trial.row_class is not None


def _changed(task: Task, trials: Trials, change: Callable[[Trial], Trial]) -> Trials:
    own = _own(task.op)
    return tuple(tuple(change(trial) if own(trial) else trial for trial in bucket) for bucket in trials)


def _own(op: str) -> Callable[[Trial], bool]:
    return lambda trial: isinstance(registry.tactic(op, trial.tactic), NativeTactic)
