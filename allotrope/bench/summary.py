"""From raw samples to the figures that are shown. The one place where a percentile is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from allotrope.bench.drive import Times


@dataclass(frozen=True)
class Spread:
    """Many samples of one quantity."""

    mean: float
    p50: float
    p90: float
    p99: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, linear between its two neighbours; NaN of nothing.

    Sorted samples stand at 0, 1, …, n − 1; asked for is what stands at share · (n − 1).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be from 0 to 1")
    if not samples:
        return math.nan
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(samples: Sequence[float]) -> Spread:
    """Mean and percentiles; all NaN of nothing."""
    mean = math.fsum(samples) / len(samples) if samples else math.nan
    return Spread(mean, *(percentile(samples, share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True)
class Latencies:
    """What the users of a load waited, in milliseconds. Definitions:

    queue  from the arrival until the first step that works on the request
    ttft   from the arrival until the first token can be read
    tpot   (last token − first token) / (tokens − 1), one value per request of two tokens or more
    itl    between one token and the next, one value per token but the first of each request
    total  from the arrival until the last token
    """

    queue: Spread
    ttft: Spread
    tpot: Spread
    itl: Spread
    total: Spread


def latencies(times: Sequence[Times]) -> Latencies:
    """The latencies of those requests that got a token."""
    answered = [one for one in times if one.tokens]
    several = [one for one in answered if len(one.tokens) > 1]
    return Latencies(
        queue=_ms([one.started - one.job.arrival for one in answered]),
        ttft=_ms([one.tokens[0] - one.job.arrival for one in answered]),
        tpot=_ms([(one.tokens[-1] - one.tokens[0]) / (len(one.tokens) - 1) for one in several]),
        itl=_ms([after - before for one in several for before, after in zip(one.tokens, one.tokens[1:], strict=False)]),
        total=_ms([one.tokens[-1] - one.job.arrival for one in answered]),
    )


def _ms(seconds: Sequence[float]) -> Spread:
    return spread([value * 1e3 for value in seconds])
