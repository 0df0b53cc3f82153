"""Whether a plan is the native core's: where every call can be, all are, so that a step is one call into it.

Tactics of other libraries that are faster at single calls stand as runners-up in the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from allotrope.build import choose
from allotrope.build.choose import Line, Trial
from allotrope.build.options import BuildOptions
from allotrope.build.tasks import Task
from allotrope.errors import BuildError
from allotrope.ops import registry
from allotrope.ops.native import NativeTactic

Trials = tuple[tuple[Trial, ...], ...]
Lines = Mapping[str, tuple[Task, Trials, Line]]
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


def serves(chosen: Lines) -> bool:
    """Whether every call's line is the core's."""
    return all(_own(task.op)(trial) for task, _, line in chosen.values() for trial in line.trials)


def obstacle(chosen: Lines, options: BuildOptions) -> str:
    """Why the plan is not the core's, as a sentence that names the first call in the way."""
    if options.executor != "native":
        return f"built for the {options.executor} executor"
    for path, (task, trials, _) in chosen.items():
        own = [trial for bucket in trials for trial in bucket if _own(task.op)(trial)]
        refusal = next((trial.refusal for trial in own if trial.refusal), None)
        if not own or refusal:
            return f"{path}: {refusal or f'the native core has no {task.op}'}"
    return "the readers of a weight want it packed in different ways"


def _own(op: str) -> Callable[[Trial], bool]:
    return lambda trial: isinstance(registry.tactic(op, trial.tactic), NativeTactic)
