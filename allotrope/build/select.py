"""From trials to a plan: which fusions, which tactic per call and row bucket, and the record of why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Plan
from allotrope.build import choose, fuse, native
from allotrope.build.choose import Line, Trial
from allotrope.build.options import BuildOptions
from allotrope.build.tasks import DECODE_ROWS, Task, tasks
from allotrope.errors import BuildError
from allotrope.hw.peaks import Ceilings
from allotrope.ops import registry
from allotrope.ops.tactic import REFERENCE

Trials = tuple[tuple[Trial, ...], ...]
Try = Callable[[Task], Trials]
Prove = Callable[[Task, tuple[str, ...]], str | None]


@dataclass(frozen=True)
class Selection:
    """The chosen plan and its evidence."""

    plan: Plan
    choices: list[dict[str, Any]] = field(default_factory=list)
    fusions: dict[str, str] = field(default_factory=dict)  # name → why it is in or out
    varying: list[str] = field(default_factory=list)  # paths of calls whose rows depend on the other rows
    not_native: str | None = None  # why the native core does not compute all of it


def reference(plan: Plan) -> Selection:
    """`--plan reference`: no fusion, every call on its reference."""
    fusions = {fusion.name: "not in: --plan reference" for fusion in fuse.FUSIONS}
    varying, why = [call.path for call in plan.calls], "--plan reference"
    return Selection(plan.with_tactics(((None, REFERENCE),)), [], fusions, varying, why)


def by_parts(attempt: Try, options: BuildOptions) -> Try:
    """`attempt`, but of ops that the options give to their references it tries these alone.

    That is every op named in `without` and, of the reference plan, every op that `plus` does not name. Where `plus`
    names tactics of an op, only they are in question.
    """

    def tried(task: Task) -> Trials:
        named = {part.removeprefix(f"{task.op}/") for part in options.plus}
        some = {tactic.name for tactic in registry.tactics(task.op)} & named
        wanted = options.plan != "reference" or task.op in options.plus or some
        if task.op in options.without or not wanted:
            packings = tuple(sorted(registry.tactic(task.op, REFERENCE).packings().items()))
            return tuple((Trial(REFERENCE, 1, None, packings, capturable=False),) for _ in task.buckets)
        found = attempt(task)
        if not some or task.op in options.plus:
            return found
        reason = "only others were added with --plus"
        return tuple(
            tuple(t if t.tactic in some or t.refusal else replace(t, refusal=reason) for t in bucket)
            for bucket in found
        )

    return tried


def select(
    plan: Plan, options: BuildOptions, attempt: Try, prove: Prove, ceilings: Ceilings | None, kind: str
) -> Selection:
    """For a kind of device, try what there is and choose. A row class is proven once it is about to be chosen."""
    known: dict[tuple[str, ...], Trials] = {}

    def lines_of(candidate: Plan) -> dict[str, tuple[Task, Trials, Line]]:
        """For each call: its task, its trials, its best line."""
        wanted = tasks(candidate, options.tune, options.executor == "graph")
        for task in wanted:
            if task.key not in known:
                known[task.key] = attempt(task)
        while True:
            found = [(task, known[task.key]) for task in wanted]
            best = native.lines(found, options, _best_lines)
            best = best or _best_lines(native.apart(found, options), options)
            false = {task.key: why for task, _, line in best.values() if (why := refuted(task, line))}
            if not false:
                return best
            for key, (members, reason) in false.items():
                known[key] = _without_class(known[key], members, reason)

    def refuted(task: Task, line: Line) -> tuple[set[str], str] | None:
        """The tactics of a line that have not the row class that they claim, and what was seen."""
        names = tuple(trial.tactic for trial in line.trials)
        if line.row_class is None or (task.key, names) in proven:
            return None
        reason = prove(task, names)
        if reason is None:
            proven.add((task.key, names))
            return None
        return set(names), reason

    proven = set[tuple[tuple[str, ...], tuple[str, ...]]]()

    reasons: dict[str, str] = {}
    chosen = lines_of(plan)
    for fusion in fuse.FUSIONS:
        whole = native.serves(chosen)
        reason = f"not in: {why}" if (why := _why_not(plan, fusion, options, kind, whole)) else None
        if reason is None:
            fused = fuse.apply(plan, fusion)
            try:
                fused_lines = lines_of(fused)
            except BuildError as error:  # apart, each call has a tactic; together they have none that will do
                reasons[fusion.name] = f"not in: {error.problem}"
                continue
            reason = _compare(plan, fusion, chosen, fused_lines)
            if whole and not native.serves(fused_lines):
                reason = "not in: apart, the native core computes them, and so the whole step"
            if reason.startswith("in"):
                plan, chosen = fused, fused_lines
        reasons[fusion.name] = reason
    for name in options.plus:
        if not reasons.get(name, "in").startswith("in"):
            raise BuildError(f"fusion {name} cannot be added: {reasons[name].removeprefix('not in: ')}", where="--plus")
    selection = _selection(plan, options, chosen, reasons, ceilings)
    missing = None if native.serves(chosen) else native.obstacle(chosen, options)
    return replace(selection, not_native=missing)


def _without_class(trials: Trials, members: set[str], reason: str) -> Trials:
    note = f"not of its row class here: {reason}"
    return tuple(
        tuple(replace(t, row_class=None, note=note) if t.tactic in members else t for t in bucket) for bucket in trials
    )


def _why_not(plan: Plan, fusion: fuse.Fusion, options: BuildOptions, kind: str, whole: bool) -> str | None:
    # The native step has a barrier where a GPU has a launch; what was asked for by name is not weighed.
    if kind not in fusion.devices and not whole and fusion.name not in options.plus:
        return f"it saves kernel launches, and a {kind} has none"
    if options.plan == "reference" and fusion.name not in options.plus:
        return "--plan reference"
    return "taken out with --without" if fusion.name in options.without else fuse.why_not(plan, fusion)


def _compare(
    plan: Plan,
    fusion: fuse.Fusion,
    split: Mapping[str, tuple[Task, Trials, Line]],
    fused: Mapping[str, tuple[Task, Trials, Line]],
) -> str:
    """Why a fusion is in or not in, over all the calls that it touches."""
    for path, parts in fuse.members(plan, fusion).items():
        whole, lines = fused[path][2], [split[part][2] for part in parts]
        if choose.parts_win(whole, lines):
            return f"not in: apart they are faster by more than the noise ({path})"
        if any(trial.measured is None for trial in whole.trials):
            return "in: nothing was timed, so the listing decides"
    return "in: not slower than apart"


def _best_lines(found: list[tuple[Task, Trials]], options: BuildOptions) -> dict[str, tuple[Task, Trials, Line]]:
    """One line per task, such that calls that share a weight agree on its packing."""
    offered = [(task, trials, _lines(task, trials, options)) for task, trials in found]
    allowed = choose.common_packings(_offers(task, lines) for task, _, lines in offered)
    chosen = {}
    for task, trials, lines in offered:
        fitting = [line for line in lines if _fits(task, line, allowed)]
        line = choose.best_line(fitting)
        if line is None:
            raise BuildError(f"no packing of its weights suits every reader of {task.paths[0]}", where=f"op {task.op}")
        for operand, packing in line.packings:
            for weight in task.weights.get(operand, ()):
                allowed[weight] = {packing}
        chosen.update(dict.fromkeys(task.paths, (task, trials, line)))
    return chosen


def _lines(task: Task, trials: Trials, options: BuildOptions) -> list[Line]:
    if options.executor == "graph":
        lines = choose.lines(_capturable(task, trials), any_class=options.allow_batch_variance)
        if lines:
            return lines
    references = all(trial.tactic == REFERENCE for bucket in trials for trial in bucket)  # asked for, whatever they do
    lines = choose.lines(trials, any_class=options.allow_batch_variance or references)
    if lines:
        return lines
    usable = [trial for bucket in trials for trial in bucket if trial.refusal is None]
    if usable:
        told = dict.fromkeys(f"{trial.tactic} ({trial.note or 'of none'})" for trial in usable if not trial.row_class)
        problem = f"no row class serves all row counts; usable: {', '.join(told)}"
        raise BuildError(problem, where=f"op {task.op}", remedy="--allow-batch-variance builds it all the same")
    refusals = "; ".join(f"{trial.tactic}: {trial.refusal}" for trial in trials[0]) or "there are none for it"
    raise BuildError(f"no tactic is usable ({refusals})", where=f"op {task.op}", remedy="use --plan reference")


def _capturable(task: Task, trials: Trials) -> Trials:
    """For rows that decode, only what a graph can hold."""
    return tuple(
        tuple(trial for trial in bucket if trial.capturable or rows > DECODE_ROWS)
        for (_, rows), bucket in zip(task.buckets, trials, strict=True)
    )


def _offers(task: Task, lines: list[Line]) -> dict[str, set[str]]:
    offers: dict[str, set[str]] = {}
    for line in lines:
        for operand, packing in line.packings:
            for weight in task.weights.get(operand, ()):
                offers.setdefault(weight, set()).add(packing)
    return offers


def _fits(task: Task, line: Line, allowed: Mapping[str, set[str]]) -> bool:
    return all(
        packing in allowed[weight] for operand, packing in line.packings for weight in task.weights.get(operand, ())
    )


def _selection(
    plan: Plan,
    options: BuildOptions,
    chosen: Mapping[str, tuple[Task, Trials, Line]],
    fusions: dict[str, str],
    ceilings: Ceilings | None,
) -> Selection:
    calls, weights, varying = [], dict(plan.weights), []
    for call in plan.calls:
        task, _, line = chosen[call.path]
        calls.append(replace(call, tactics=choose.collapse([bound for bound, _ in task.buckets], line)))
        if line.row_class is None:
            varying.append(call.path)
        for operand, packing in line.packings:
            if operand in call.ins:
                name = plans.name(call.ins[operand])
                weights[name] = replace(weights[name], packing=packing)
    seen = {id(task): (task, trials, line) for task, trials, line in chosen.values()}
    choices = [_record(task, trials, line, options, ceilings) for task, trials, line in seen.values()]
    return Selection(replace(plan, calls=tuple(calls), weights=weights), choices, fusions, varying)


def _record(task: Task, trials: Trials, line: Line, options: BuildOptions, ceilings: Ceilings | None) -> dict[str, Any]:
    """The evidence for one choice: why this tactic, and what else there was."""
    contract = registry.contract(task.op)
    rows = []
    for (bound, count), problem, bucket, picked in zip(task.buckets, task.problems, trials, line.trials, strict=True):
        cost = contract.cost(problem)
        floor = None if ceilings is None else ceilings.floor_s(cost.bytes, cost.flops, problem.dtype)
        others = [trial for trial in bucket if trial is not picked]
        rows.append(
            {
                "up_to_rows": bound,
                "tried_rows": count,
                "tactic": picked.tactic,
                **_figures(picked),
                "floor_s": floor,
                "runners_up": [
                    {"tactic": t.tactic, **_figures(t), "row_class": t.row_class, "note": t.note}
                    for t in others
                    if t.refusal is None
                ],
                "refused": [{"tactic": t.tactic, "reason": t.refusal} for t in others if t.refusal is not None],
            }
        )
    return {
        "op": task.op,
        "paths": list(task.paths),
        "problem": task.problems[0].key(),
        "row_class": line.row_class,
        "packings": dict(line.packings),
        "by": "listing order" if options.tune == "off" else "time",
        "buckets": rows,
    }


def _figures(trial: Trial) -> dict[str, Any]:
    measured = trial.measured
    return {
        "seconds": None if measured is None else measured.seconds,
        "noise": None if measured is None else measured.noise,
        "error": trial.max_error if math.isfinite(trial.max_error) else None,
        "plain_error": trial.floor_error,
    }
