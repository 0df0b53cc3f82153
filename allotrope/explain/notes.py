"""What is put down of a run while it goes on, and what that makes: its steps, its requests' lives, its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from operator import itemgetter
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from allotrope.bench.watch import Step
from allotrope.explain.spans import NOTHING, Ranges, Span, spans
from allotrope.runtime.request import Request
from allotrope.runtime.step import Ints, StepOutput

if TYPE_CHECKING:
    from allotrope.runtime.step import Seconds

QUEUED, PLANNING, LAUNCHING, WAITING, COMMITTING = "queueing", "planning", "launching", "waiting", "committing"
TAKING, LOOPING, TOKENISING = "text", "loop", "tokenising"


@dataclass(eq=False)
class Stepped:
    """One step: what it held, when the host launched it and had its results, and what its executor's clocks say."""

    step: Step
    launched: tuple[float, float]
    waited: float = 0.0  # until then
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
    """All that was seen of a run."""

    spans: list[Span]
    steps: list[Stepped]
    lives: dict[Request, Life]
    pages: list[tuple[float, int]]  # in use, after each step

    def without_first(self, requests: int) -> tuple[Seen, float]:
        """What came after the first so many requests, and when the next one was queued."""
        lives = dict(list(self.lives.items())[requests:])
        began = min(life.queued for life in lives.values())
        spans = [one for one in self.spans if one.begin >= began]
        steps = [one for one in self.steps if one.launched[0] >= began]
        return Seen(spans, steps, lives, [one for one in self.pages if one[0] >= began]), began


@dataclass
class Notes:
    """What is put down while a run goes on, as it comes: moments, and what a step held and gave.

    It must cost little, so a step leaves no more than numbers and what is there anyway. Steps are taken in as they were
    launched, maybe later.
    """

    ranges: Ranges | None = None
    paged: bool = False  # whether pages in use are counted, for a timeline
    told: list[tuple[float, str]] = field(default_factory=list)  # what is done from then on, around the steps
    planned: list[float] = field(default_factory=list)  # from, until, from, until, …
    starts: list[Ints] = field(default_factory=list)  # of each step planned, likewise the next three
    first: list[bytes] = field(default_factory=list)
    want: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    sample: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)  # until; empty where a step is computed when it is launched
    committed: list[float] = field(default_factory=list)  # from, until, from, until, …
    outputs: list[StepOutput] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)  # by when it had become text
    pages: list[tuple[float, int]] = field(default_factory=list)
    lives: dict[Request, Life] = field(default_factory=dict)
    waiting: set[Request] = field(default_factory=set)  # no step has worked on them
    silent: set[Request] = field(default_factory=set)  # they have no token yet

    def now(self, name: str) -> None:
        """From now on, this is done."""
        if self.ranges is not None:
            if self.told and self.told[-1][1] != NOTHING:
                self.ranges.range_pop()
            if name != NOTHING:
                self.ranges.range_push(name)
        self.told.append((perf_counter(), name))

    def unplanned(self) -> None:
        """There was no step to plan."""
        self.told += zip(self.planned[-2:], (PLANNING, LOOPING), strict=True)
        del self.planned[-2:]

    def queue(self, requests: Sequence[Request]) -> None:
        """They have just been queued."""
        self.lives.update((request, Life(self.told[-1][0])) for request in requests)
        self.waiting.update(requests)
        self.silent.update(requests)

    def start(self, running: list[Request]) -> None:
        """Who waited and takes part in the step that has been planned, starts with it."""
        for request in self.waiting.intersection(running):
            self.lives[request].started = self.planned[-2]
            self.waiting.remove(request)

    def answer(self, request: Request) -> None:
        """It has its first token, or has ended."""
        life = self.lives.get(request)
        if life is None:
            return
        if request in self.silent:
            self.silent.remove(request)
            life.first = self.committed[-1]
        if request.finish_reason is not None:
            life.ended, life.reason = self.committed[-1], request.finish_reason

    def seen(self) -> Seen:
        """All of it worked out."""
        steps = []
        launched = self.launched or self.committed[::2]  # a CPU has computed a step when it is launched
        fields = (self.starts, self.first, self.want, self.sample, self.planned[1::2], launched)
        for starts, first, want, sample, began, ended in zip(*fields, strict=True):
            held = Step(starts, np.frombuffer(first, np.int32), want, sample)
            steps.append(Stepped(held, (began, ended)))
        for one, waited, output in zip(steps, self.committed[::2], self.outputs, strict=False):
            one.waited, one.busy_s, one.idle_s = waited, output.busy_s, output.idle_s
            if output.timed is not None:
                one.call_s, one.prepare_s = output.timed.seconds()
        return Seen(spans(self._moments()), steps, self.lives, self.pages)

    def _moments(self) -> list[tuple[float, str]]:
        """What is done from when on. Where the loop went on to take a step in, it waited for it."""
        found = list(self.told)
        for moments, names in (
            (self.planned, (PLANNING, LAUNCHING)),
            (self.launched, (LOOPING,)),
            (self.committed, (COMMITTING, TAKING)),
            (self.shown, (LOOPING,)),
        ):
            found += zip(moments, cycle(names), strict=False)
        found.sort(key=itemgetter(0))
        after = [name for _, name in found[1:]] + [NOTHING]
        return [
            (moment, WAITING if name == LOOPING and then == COMMITTING else name)
            for (moment, name), then in zip(found, after, strict=True)
        ]
