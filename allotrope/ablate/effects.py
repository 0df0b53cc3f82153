"""What a part buys, by figures that were taken in turn: ratios round by round, their interval, and what is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.ablate.speed import Cell, Runner, Sample
from allotrope.bench.summary import percentile
from allotrope.eval import paired

_STRICT = 0.99


@dataclass(frozen=True)
class Gain:
    """How many times faster with than without. `shows`: by more than noise, that is, than the whole beside itself."""

    ratio: float
    low: float
    high: float
    shows: bool

    def to_json(self) -> dict[str, Any]:
        """The keys of a row."""
        return {"gain": self.ratio, "gain_interval": [self.low, self.high], "more_than_noise": self.shows}


def gain(slow: Sequence[Sample], fast: Sequence[Sample], seed: int, noise: float = 0.0) -> Gain | None:
    """Of the second over the first, paired by round; None where they have no two rounds in common.

    `noise` is how far, as a logarithm, the same engine measured twice was from itself. Many parts are tried, so what
    is to show must hold at 99 %.
    """
    logs = [math.log(one.latency / other.latency) for one, other in zip(slow, fast, strict=False)]
    if len(logs) < 2:
        return None
    middle, (low, high) = percentile(logs, 0.5), paired.interval(logs, seed=seed)
    strict = paired.interval(logs, confidence=_STRICT, seed=seed)
    # The interval is the mean's, which one disturbed round may pull off the middle: what it leaves out is not known.
    low, high = min(low, middle), max(high, middle)
    shows = (strict[0] > 0 or strict[1] < 0) and abs(middle) > noise
    return Gain(math.exp(middle), math.exp(low), math.exp(high), shows)


def noise(one: Sequence[Sample], again: Sequence[Sample], seed: int) -> float:
    """How far an engine is from itself, as a logarithm."""
    found = gain(one, again, seed)
    return 0.0 if found is None else abs(math.log(found.ratio))


def figures(runner: Runner, cell: Cell) -> dict[str, Any]:
    """A cell's medians, with half the distance between the quartiles as the spread."""
    samples = runner.samples.get(cell, [])
    latency = [one.latency * 1e3 for one in samples]
    prefill = percentile([one.prefill * 1e3 for one in samples], 0.5)
    decode = percentile([max(one.latency - one.prefill, 0.0) * 1e3 for one in samples], 0.5)
    median = percentile(latency, 0.5)
    spread = (percentile(latency, 0.75) - percentile(latency, 0.25)) / 2
    return {
        "batch": cell.batch,
        "input": cell.input,
        "output": cell.output,
        "latency_ms": median if samples else None,
        "latency_spread_ms": spread if samples else None,
        "prefill_ms": prefill if samples else None,
        "decode_ms": decode if samples else None,
        "tokens_per_s": cell.batch * cell.output / median * 1e3 if samples else None,
        "reason": runner.refused.get(cell),
    }


@dataclass(frozen=True)
class Interaction:
    """All parts together beside what each one does: gains that are independent would multiply to the whole."""

    what: str
    whole: float
    each: Mapping[str, float]

    @property
    def product(self) -> float:
        """Of the single gains."""
        return math.prod(self.each.values())

    @property
    def factor(self) -> float:
        """Below 1: the parts overlap; above: they help one another."""
        return self.whole / self.product

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "what": self.what,
            "whole": self.whole,
            "each": dict(self.each),
            "product": self.product,
            "interaction": self.factor,
        }
