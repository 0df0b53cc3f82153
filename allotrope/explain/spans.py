"""What was done when: moments at which something new begins, and what they make of a run's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

NOTHING = ""  # is done, when nobody says


@dataclass(frozen=True)
class Span:
    """Something that was done, in seconds of the host's clock. No two overlap."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


class Ranges(Protocol):
    """Whoever else wants to hear what is done: NVTX, on a GPU."""

    def range_push(self, name: str) -> object:
        """It begins."""
        ...

    def range_pop(self) -> object:
        """It is over."""
        ...


def spans(moments: Sequence[tuple[float, str]]) -> list[Span]:
    """From each moment to the next; after the last nobody knows."""
    return [Span(name, begin, end) for (begin, name), (end, _) in pairwise(moments) if name != NOTHING]
