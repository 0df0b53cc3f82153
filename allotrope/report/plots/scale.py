"""From figures to places in a picture, and the round figures to write beside an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ALMOST = 1 - 1e-9  # of a step, which is that step but for rounding


@dataclass(frozen=True)
class Linear:
    """Equal steps for equal differences."""

    low: float
    high: float
    start: float  # where `low` lies, in pixels
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value; what lies outside stays at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round figures, about so many."""
        step = _round((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Log:
    """Equal steps for equal factors."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value; zero and what lies outside stay at the edge."""
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Powers of ten, about so many."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        every = max(1, math.ceil((last - first + 1) / about))
        return [10.0**power for power in range(first, last + 1, every)]


def linear(values: Iterable[float], start: float, end: float, *, room: float = 0.05) -> Linear:
    """A scale from zero (or the least, if that is below) to a little beyond the largest."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    if high == low:
        return Linear(low, low + 1, start, end)
    spare = (high - low) * room
    return Linear(low - (spare if low < 0 else 0), high + (spare if high > 0 else 0), start, end)


def log(values: Iterable[float], start: float, end: float) -> Log:
    """A scale between powers of ten that holds every positive value."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = (math.floor(math.log10(min(known)) - 1e-9), math.ceil(math.log10(max(known)) + 1e-9))
    low, high = max(low, -300), min(high, 300)
    return Log(10.0**low, 10.0 ** (high if high > low else low + 1), start, end)


def _round(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step * _ALMOST)
