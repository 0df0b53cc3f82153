"""What there is to tune in a plan: each distinct problem once, at a few row counts that stand for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.ops.contract import Problem

Bucket = tuple[int | None, int]  # (the plan entry's bound, the row count that is tried)
_FULL: Mapping[str, tuple[Bucket, ...]] = {
    TOKENS: ((1, 1), (8, 8), (64, 64), (None, 512)),
    LOGITS: ((1, 1), (8, 8), (None, 64)),
    SAMPLES: ((1, 1), (8, 8), (None, 64)),
}
_FAST: tuple[Bucket, ...] = ((1, 1), (None, 64))
_OFF: tuple[Bucket, ...] = ((None, 3),)
# For the graph executor, rows that decode always have a tactic of their own: a graph must be able to hold it.
_FAST_GRAPH: tuple[Bucket, ...] = ((1, 1), (64, 64), (None, 512))
_OFF_GRAPH: tuple[Bucket, ...] = ((64, 3), (None, 80))
DECODE_ROWS, _CONTEXT = 64, 256  # up to so many rows, each is a request that decodes with so long a context


@dataclass(frozen=True)
class Task:
    """Calls that pose the same problems. `weights` says which packed weights each operand reads."""

    op: str
    buckets: tuple[Bucket, ...]
    problems: tuple[Problem, ...]  # one per bucket
    paths: tuple[str, ...]
    weights: Mapping[str, tuple[str, ...]]

    @property
    def key(self) -> tuple[str, ...]:
        """The same for all calls that pose the same problems."""
        return tuple(problem.key() for problem in self.problems)


def tasks(plan: Plan, effort: str, graph: bool = False) -> list[Task]:
    """The plan's tasks, in the order of their first calls."""
    found: dict[tuple[str, ...], list[tuple[Call, tuple[Bucket, ...], tuple[Problem, ...]]]] = {}
    for call in plan.calls:
        rows = buckets(rows_kind(plan, call), effort, graph)
        problems = tuple(problem(plan, call, load(count, plan.max_len)) for _, count in rows)
        found.setdefault(tuple(one.key() for one in problems), []).append((call, rows, problems))
    return [_task(group) for group in found.values()]


def _task(group: list[tuple[Call, tuple[Bucket, ...], tuple[Problem, ...]]]) -> Task:
    first, rows, problems = group[0]
    weights = {
        operand: tuple(plans.name(call.ins[operand]) for call, _, _ in group)
        for operand, slot in first.ins.items()
        if plans.kind(slot) == "w"
    }
    return Task(first.op, rows, problems, tuple(call.path for call, _, _ in group), weights)


def buckets(kind: str, effort: str, graph: bool = False) -> tuple[Bucket, ...]:
    """The row counts tried for a call whose rows are of this kind."""
    if graph and kind == TOKENS and effort != "full":
        return _FAST_GRAPH if effort == "fast" else _OFF_GRAPH
    return {"full": _FULL[kind], "fast": _FAST}.get(effort, _OFF)


def load(rows: int, max_len: int) -> Load:
    """A realistic step with so many rows: requests that decode, or one prompt that is read."""
    if rows <= DECODE_ROWS:
        return Load(rows, requests=rows, context=min(_CONTEXT, max_len))
    requests = -(-rows // max_len)  # a prompt longer than the model allows is several prompts
    return Load(rows, requests=requests, context=min(rows, max_len))


def rows_kind(plan: Plan, call: Call) -> str:
    """Which rows a call works on: those of its first output that is a buffer, or else of its first input."""
    for slot in (*call.outs.values(), *call.ins.values()):
        if plans.kind(slot) == "b":
            return plan.buffers[plans.name(slot)].rows
    return TOKENS
