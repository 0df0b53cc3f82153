"""What was done when, as spans within spans; each knows how much of its time was its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    """Takes down spans; they come in the order in which they end."""

    ranges: Ranges | None = None
    found: list[Span] = field(default_factory=list)
    _inner: list[float] = field(default_factory=list)  # of each open span: the time that spans inside it took

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What is done inside is called `name`."""
        self._inner.append(0.0)
        if self.ranges is not None:
            self.ranges.range_push(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            if self.ranges is not None:
                self.ranges.range_pop()
            took, inner = end - begin, self._inner.pop()
            if self._inner:
                self._inner[-1] += took
            self.found.append(Span(name, begin, end, took - inner, len(self._inner)))
