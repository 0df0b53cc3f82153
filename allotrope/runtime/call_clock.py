"""How long each call of a step takes. An executor that was not opened timed has no such clock, and pays nothing.

While steps run, moments are noted and no more; seconds are worked out of them when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotrope.artifact.plan import Call, Plan
from allotrope.runtime.step import Seconds

_ROOM = 256  # steps that the core notes before they are read
_UNREAD: Seconds = np.zeros(0)


@dataclass(frozen=True)
class CallTimes:
    """One step's moments, between which its calls lay; on a GPU they are events, read once the step has ended."""

    began: Any  # when the executor took the step
    moments: Sequence[tuple[int | None, Any]]  # in order: whose end it is, by its place in the plan; None: nobody's
    calls: int  # in the plan

    def seconds(self) -> tuple[Seconds, float]:
        """Per call of the plan, 0 for one that had no rows; and how long the step took before the first."""
        per_call, before, prepare = np.zeros(self.calls), self.began, 0.0
        for i, (place, moment) in enumerate(self.moments):
            took = _between(before, moment)
            before = moment
            if place is not None:
                per_call[place] += took
            elif i == 0:
                prepare = took
        return per_call, prepare


class CallClock:
    """Notes the moment after each call. What happens to a step before the first, and between them, is told apart."""

    def __init__(self, plan: Plan, cuda: bool) -> None:
        self._places = {id(call): place for place, call in enumerate(plan.calls)}
        self._cuda = cuda
        self._began: Any = None
        self._moments: list[tuple[int | None, Any]] = []

    def begin(self) -> None:
        """A step has come."""
        self._began, self._moments = self._now(), []

    def skip(self) -> None:
        """What was done since the last moment belongs to no call."""
        self._moments.append((None, self._now()))

    def ended(self, call: Call) -> None:
        """A call is over."""
        self._moments.append((self._places[id(call)], self._now()))

    def take(self) -> CallTimes:
        """The step's moments."""
        return CallTimes(self._began, self._moments, len(self._places))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class CoreStep:
    """What the native core noted of one step."""

    __slots__ = ("_clock", "line")

    def __init__(self, clock: CoreClock) -> None:
        self._clock = clock
        self.line = _UNREAD  # before the first call, then each call's

    def seconds(self) -> tuple[Seconds, float]:
        """Per call of the plan, 0 for one that had no rows; and how long the step took before the first."""
        if self.line is _UNREAD:
            self._clock.read()
        return self.line[1:], float(self.line[0])


class CoreClock:
    """The native core's clock: it notes moments in room of its own, which is read when it is full or somebody asks."""

    def __init__(self, core: Any, plan: Plan) -> None:
        core.clock(_ROOM)
        self._core, self._width = core, 1 + len(plan.calls)
        self._unread: list[CoreStep] = []

    def stepped(self) -> CoreStep:
        """A step has been computed."""
        step = CoreStep(self)
        self._unread.append(step)
        if len(self._unread) == _ROOM:
            self.read()
        return step

    def close(self) -> None:
        """Read what is left, and let go of the core."""
        self.read()
        self._core = None

    def read(self) -> None:
        """Read what the core has noted."""
        lines = np.empty((len(self._unread), self._width))
        self._core.read_clock(lines)
        for step, line in zip(self._unread, lines, strict=True):
            step.line = line
        self._unread = []


def _between(start: Any, end: Any) -> float:
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
