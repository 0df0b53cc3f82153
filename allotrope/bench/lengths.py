"""How long the prompts and outputs of a made-up load are, as people write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotrope.errors import UsageError

_COUNT = r"[1-9]\d{0,8}"
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens: evenly from `low` to `high`, or lognormal about a median."""

    low: int
    high: int | None  # None: lognormal, which has no longest
    median: float = 0.0
    sigma: float = 0.0  # of the logarithm: 0.7 means that two thirds lie within a factor of two

    @property
    def longest(self) -> int:
        """The most that must have room: the longest, or of a lognormal (which is cut where it must be) the median."""
        return math.ceil(self.median) if self.high is None else self.high

    def draw(self, random: np.random.Generator, most: int) -> int:
        """One length. Only a lognormal is cut to `most`; the others fit or were refused."""
        if self.high is not None:
            return int(random.integers(self.low, self.high + 1))
        return min(max(round(random.lognormal(math.log(self.median), self.sigma)), 1), most)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        if self.high is None:
            return {"lognormal": {"median": self.median, "sigma": self.sigma}}
        return {"from": self.low, "to": self.high}


def parse(option: str, text: str) -> Lengths:
    """`128` (all alike), `100:1024` (evenly, both ends included) or `lognormal:200:0.7` (median, sigma)."""
    if found := re.fullmatch(rf"({_COUNT})(?::({_COUNT}))?", text):
        low, high = int(found[1]), int(found[2] or found[1])
        if low <= high:
            return Lengths(low, high)
    if found := re.fullmatch(rf"lognormal:({_NUMBER}):({_NUMBER})", text):
        median, sigma = float(found[1]), float(found[2])
        if median >= 1 and sigma <= 10:
            return Lengths(1, None, median, sigma)
    raise UsageError(
        f"{option} is {text[:40]!r}", remedy="give 128, 100:1024 or lognormal:MEDIAN:SIGMA (such as lognormal:200:0.7)"
    )
