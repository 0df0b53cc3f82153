"""A loop whose every part is timed: planning, launching, waiting, committing, text. Nothing of the runtime changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from allotrope.bench.watch import Step
from allotrope.explain.spans import Spans
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import Loop
from allotrope.runtime.opening import Opened
from allotrope.runtime.request import Request
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import Executor, Pending, StepInput, StepOutput

if TYPE_CHECKING:
    from allotrope.runtime.step import Seconds

QUEUED, PLANNING, LAUNCHING, WAITING, COMMITTING = "queueing", "planning", "launching", "waiting", "committing"
TAKING, LOOPING, NOTING, TOKENISING = "text", "loop", "clocks", "tokenising"


@dataclass(eq=False)
class Stepped:
    """One step: what it held, when the host launched it and had its results, and what its executor's clocks say."""

    step: Step
    launched: tuple[float, float]
    waited: tuple[float, float] = (0.0, 0.0)
    busy_s: float = 0.0
    idle_s: float = 0.0
    prepare_s: float = 0.0
    call_s: Seconds | None = None

    @property
    def context(self) -> bool:
        """Whether a prompt was read in it."""
        return bool((self.step.counts > 1).any() or not self.step.sample.all() or (self.step.first == 0).any())


@dataclass(eq=False)
class Life:
    """A request's moments; None: not yet."""

    queued: float
    started: float | None = None
    first: float | None = None
    ended: float | None = None
    reason: str | None = None


@dataclass
class Seen:
    """All that was noted of a run."""

    spans: Spans
    steps: list[Stepped] = field(default_factory=list)
    lives: dict[Request, Life] = field(default_factory=dict)
    pages: list[tuple[float, int]] = field(default_factory=list)  # in use, after each step

    def without_first(self, requests: int) -> tuple[Seen, float]:
        """What came after the first so many requests, and when the next one was queued."""
        lives = dict(list(self.lives.items())[requests:])
        began = min(life.queued for life in lives.values())
        spans = Spans(ended=[one for one in self.spans.ended if one[1] >= began])
        steps = [one for one in self.steps if one.launched[0] >= began]
        return Seen(spans, steps, lives, [one for one in self.pages if one[0] >= began]), began


class _Executor:
    """Hands steps on and takes their times."""

    def __init__(self, executor: Executor, seen: Seen) -> None:
        self._executor, self._seen = executor, seen

    def launch(self, step: StepInput) -> Pending:
        spans = self._seen.spans
        began = spans.begin(LAUNCHING)
        pending = self._executor.launch(step)
        ended = spans.end(LAUNCHING, began)
        stepped = Stepped(Step(step.starts, step.first, step.want, step.sample), (began, ended))
        self._seen.steps.append(stepped)
        return _Pending(pending, stepped, spans)


class _Pending:
    __slots__ = ("_pending", "_spans", "_stepped")

    def __init__(self, pending: Pending, stepped: Stepped, spans: Spans) -> None:
        self._pending, self._stepped, self._spans = pending, stepped, spans

    @property
    def ready(self) -> bool:
        return self._pending.ready

    def wait(self) -> StepOutput:
        began, one = self._spans.begin(WAITING), self._stepped
        output = self._pending.wait()
        one.waited = (began, self._spans.end(WAITING, began))
        one.busy_s, one.idle_s = output.busy_s, output.idle_s
        one.prepare_s, one.call_s = output.prepare_s, output.call_s
        return output


class _Scheduler:
    """A scheduler whose planning and committing are timed; all else is its own."""

    def __init__(self, scheduler: Scheduler, spans: Spans) -> None:
        self._scheduler, self._spans = scheduler, spans

    def plan_step(self) -> StepInput | None:
        began = self._spans.begin(PLANNING)
        step = self._scheduler.plan_step()
        self._spans.end(PLANNING, began)
        return step

    def commit(self, output: StepOutput) -> list[Request]:
        began = self._spans.begin(COMMITTING)
        found = self._scheduler.commit(output)
        self._spans.end(COMMITTING, began)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class WatchedLoop(Loop):
    """The loop itself, with a span around each step and around what is taken in of it."""

    def __init__(
        self,
        opened: Opened,
        seen: Seen,
        *,
        executor: Executor | None = None,
        skip_step: int = 0,
        check_step: int = 1,
    ) -> None:
        """`executor`: what stands for the engine's own, which it hands its steps on to."""
        scheduler = cast("Scheduler", _Scheduler(opened.loop.scheduler, seen.spans))
        watched = _Executor(executor or opened.executor, seen)
        looks = {"skip_step": skip_step, "check_step": check_step}
        super().__init__(watched, scheduler, opened.tokenizer, opened.limits, **looks)
        self._seen = seen

    def submit(self, generation: Generation) -> None:
        """Queue a prepared request, and remember when."""
        super().submit(generation)
        now = time.perf_counter()
        self._seen.lives.update((request, Life(now)) for request in generation.requests)

    def step(self) -> list[Generation]:
        """One step of the loop, and what is seen after it."""
        spans = self._seen.spans
        began = spans.begin(LOOPING)
        changed = super().step()
        spans.end(LOOPING, began)
        noting = spans.begin(NOTING)
        self._note(began, noting, changed)
        spans.end(NOTING, noting)
        return changed

    def _take(self, changed: dict[Generation, None]) -> None:
        began = self._seen.spans.begin(TAKING)
        super()._take(changed)
        self._seen.spans.end(TAKING, began)

    def _note(self, began: float, now: float, changed: Sequence[Generation]) -> None:
        """Who has begun, has a first token, has ended; and the pages in use."""
        seen = self._seen
        answered = [request for generation in changed for request in generation.requests]
        for request in (*self.scheduler.running, *answered):
            life = seen.lives.get(request)
            if life is None:
                continue
            life.started = began if life.started is None else life.started
            if life.first is None and len(request.tokens) > request.prompt_len:
                life.first = now
            if life.ended is None and request.finish_reason is not None:
                life.ended, life.reason = now, request.finish_reason
        seen.pages.append((now, self.scheduler.pages_used))
