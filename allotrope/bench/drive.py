"""Puts a load on a loop, each request when it is due, and notes when its tokens came."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from allotrope.bench.workload import Job
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import Loop
from allotrope.runtime.request import Request

_LONGEST_S = 3600.0  # what is slept at once: a clock has its limits, and a trace may span years


@dataclass(eq=False)
class Times:
    """One request's clock, in seconds after the load began."""

    job: Job
    started: float = math.nan  # when the first step that works on it was begun
    tokens: list[float] = field(default_factory=list)  # when each could be read
    finish_reason: str | None = None
    error: str | None = None
    preemptions: int = 0


@dataclass(frozen=True)
class Clock:
    """Time, and how to let it pass; tests have their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], object] = time.sleep


@dataclass(frozen=True)
class Driven:
    """How a load went."""

    times: Sequence[Times]  # in order of arrival
    generations: Sequence[Generation]  # likewise
    seconds: float  # from the load's beginning to the last request's end
    absent_s: float  # of these, while no request was there


def drive(
    loop: Loop, jobs: Sequence[Job], clock: Clock | None = None, ended: Callable[[], object] = lambda: None
) -> Driven:
    """Run all jobs, which come in order of arrival, to their ends.

    Every request is made and checked before the clock starts, so one that can never fit fails the load at once.
    `ended` is called whenever one has ended.
    """
    return _Load(loop, jobs, clock or Clock(), ended).run()


class _Load:
    def __init__(self, loop: Loop, jobs: Sequence[Job], clock: Clock, ended: Callable[[], object]) -> None:
        self._loop, self._clock, self._ended = loop, clock, ended
        self._due = deque(
            (Times(job), loop.prepare(None, job.prompt, job.params, priority=job.priority)) for job in jobs
        )
        self._live: dict[Generation, Times] = {}
        self._queued: dict[Request, Times] = {}  # of these, whom no step has worked on

    def run(self) -> Driven:
        times, generations = [one for one, _ in self._due], [one for _, one in self._due]
        began, absent = self._clock.now(), 0.0
        try:
            while self._due or self._live:
                now = self._clock.now() - began
                self._submit(now)
                if not self._live:
                    self._clock.sleep(min(self._due[0][0].job.arrival - now, _LONGEST_S))
                    absent += self._clock.now() - began - now
                    continue
                changed = self._loop.step()
                seen = self._clock.now() - began
                self._note_started(now, changed)
                for generation in changed:
                    self._note(generation, seen)
            seconds = self._clock.now() - began
        finally:
            for generation in self._live:
                self._loop.cancel(generation)
            self._loop.drain()
        return Driven(times, generations, seconds, absent)

    def _submit(self, now: float) -> None:
        """Queue whoever is due."""
        while self._due and self._due[0][0].job.arrival <= now:
            times, generation = self._due.popleft()
            self._loop.submit(generation)
            self._live[generation] = self._queued[generation.request] = times

    def _note_started(self, now: float, changed: Sequence[Generation]) -> None:
        """Whoever has a slot, or has had one and ended, takes part since the step that was planned last."""
        for request in (*self._loop.scheduler.running, *(generation.request for generation in changed)):
            times = self._queued.pop(request, None)
            if times is not None:
                times.started = now

    def _note(self, generation: Generation, seen: float) -> None:
        times, request = self._live[generation], generation.request
        times.tokens += [seen] * (len(request.tokens) - request.prompt_len - len(times.tokens))
        if request.finish_reason is not None:
            times.finish_reason, times.error = request.finish_reason, request.error
            times.preemptions = request.preemptions
            del self._live[generation]
            self._ended()
