"""A loop whose every part is timed: planning, launching, waiting, committing, text. Nothing of the runtime changes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, ParamSpec, TypeVar, cast

from allotrope.explain.notes import COMMITTING, LAUNCHING, LOOPING, PLANNING, QUEUED, Notes
from allotrope.explain.spans import Ranges
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import Loop
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.opening import Opened
from allotrope.runtime.request import Request
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import Executor, Pending, StepInput, StepOutput

P = ParamSpec("P")
T = TypeVar("T")


def _told(ranges: Ranges | None, name: str, do: Callable[P, T]) -> Callable[P, T]:
    """`do`, of which `ranges` hear."""
    if ranges is None:
        return do

    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        ranges.range_push(name)
        try:
            return do(*args, **kwargs)
        finally:
            ranges.range_pop()

    return told


class _Executor:
    """Hands steps on and notes when they were launched."""

    can_repeat = False  # every step is to be seen

    def __init__(self, executor: Executor, notes: Notes) -> None:
        self._launch, self._launched = _told(notes.ranges, LAUNCHING, executor.launch), notes.launched.append

    def launch(self, step: StepInput) -> Pending:
        pending = self._launch(step)
        self._launched(perf_counter())
        return pending


class _Scheduler:
    """A scheduler whose planning and committing are timed; all else is its own."""

    def __init__(self, scheduler: Scheduler, notes: Notes) -> None:
        self._scheduler, self._notes = scheduler, notes
        self._plan, self._planned = _told(notes.ranges, PLANNING, scheduler.plan_step), notes.planned.append
        self._commit, self._committed = _told(notes.ranges, COMMITTING, scheduler.commit), notes.committed.append
        self._starts, self._first = notes.starts.append, notes.first.append
        self._want, self._sample = notes.want.append, notes.sample.append
        self._gave, self._silent = notes.outputs.append, notes.silent

    def plan_step(self, hold_s: float = 0.0) -> StepInput | None:
        self._planned(perf_counter())
        step = self._plan(hold_s)
        self._planned(perf_counter())
        if step is None:
            self._notes.unplanned()
            return None
        self._starts(step.starts)
        self._first(step.first.tobytes())  # an array would take its memory along
        self._want(step.want)
        self._sample(step.sample)
        if self._notes.waiting:
            self._notes.start(self._scheduler.running)
        return step

    def commit(self, output: StepOutput) -> list[Request]:
        self._committed(perf_counter())
        answered = self._commit(output)
        self._committed(perf_counter())
        self._gave(output)
        for request in answered:
            if request.finish_reason is not None or request in self._silent:
                self._notes.answer(request)
        if self._notes.paged:
            self._notes.pages.append((perf_counter(), self._scheduler.pages_used))
        return answered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class WatchedLoop(Loop):
    """The loop itself, with its moments noted."""

    def __init__(
        self,
        opened: Opened,
        notes: Notes,
        *,
        executor: Executor | None = None,
        skip_step: int = 0,
        check_step: int = 1,
    ) -> None:
        """`executor`: what stands for the engine's own, which it hands its steps on to."""
        scheduler = cast("Scheduler", _Scheduler(opened.loop.scheduler, notes))
        watched = executor or opened.executor
        if not isinstance(opened.executor, NativeExecutor):
            watched = _Executor(watched, notes)
        looks = {"skip_step": skip_step, "check_step": check_step}
        super().__init__(watched, scheduler, opened.tokenizer, opened.limits, **looks)
        self._notes, self._shown = notes, notes.shown.append

    def submit(self, generation: Generation, hold_s: float = 0.0) -> None:
        """Queue a prepared request, and remember when."""
        self._notes.now(QUEUED)
        super().submit(generation, hold_s)
        self._notes.queue(generation.requests)
        self._notes.now(LOOPING)

    def _take(self, changed: dict[Generation, None]) -> None:
        Loop._take(self, changed)
        self._shown(perf_counter())
