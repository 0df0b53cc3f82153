"""What was done when, as spans within spans; each knows how much of its time was its own.

While a run goes on, a span costs two looks at the clock and one entry in a list: what lies in what is worked out later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol


@dataclass(frozen=True)
class Span:
    """Something that was done, in seconds of the host's clock. `own` is what no span inside it had."""

    name: str
    begin: float
    end: float
    own: float
    depth: int  # how many spans lie around it


class Ranges(Protocol):
    """Whoever else wants to hear where a span begins and ends: NVTX, on a GPU."""

    def range_push(self, name: str) -> object:
        """A span begins."""
        ...

    def range_pop(self) -> object:
        """The innermost one ends."""
        ...


@dataclass
class Spans:
    """Takes down spans. `ended` has name, begin and end of each, in the order in which they ended."""

    ranges: Ranges | None = None
    ended: list[tuple[str, float, float]] = field(default_factory=list)

    def begin(self, name: str) -> float:
        """What is done from now on is called `name`; gives the moment, for `end`."""
        if self.ranges is not None:
            self.ranges.range_push(name)
        return perf_counter()

    def end(self, name: str, begin: float) -> float:
        """It is over; gives the moment."""
        end = perf_counter()
        if self.ranges is not None:
            self.ranges.range_pop()
        self.ended.append((name, begin, end))
        return end

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What is done inside is called `name`."""
        begin = self.begin(name)
        try:
            yield
        finally:
            self.end(name, begin)

    def found(self) -> list[Span]:
        """Every span, in the order in which they ended: an inner one before the one around it."""
        inner, around, waiting = [0.0] * len(self.ended), [-1] * len(self.ended), list[int]()
        for place, (_, begin, _end) in enumerate(self.ended):
            while waiting and self.ended[waiting[-1]][1] >= begin:
                child = waiting.pop()
                around[child] = place
                inner[place] += self.ended[child][2] - self.ended[child][1]
            waiting.append(place)
        depths = [0] * len(self.ended)
        for place in reversed(range(len(self.ended))):  # the one around ended later
            depths[place] = 0 if around[place] < 0 else depths[around[place]] + 1
        return [
            Span(name, begin, end, end - begin - inner[place], depths[place])
            for place, (name, begin, end) in enumerate(self.ended)
        ]
