"""Differences by example: how sure they are, whether chance explains them, and what so many could have shown.

Two systems that answer the same examples are compared example by example, for most of what varies varies alike in
both. NumPy alone; seeded, so that the same figures come out again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE, POWER = 0.95, 0.8
RESAMPLES, SHUFFLES = 10_000, 10_000
_FEW = 8
_AT_ONCE = 1 << 22  # numbers held at a time
_NORMAL = NormalDist()

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """How much larger one system's scores are than another's, on the same examples.

    `detectable` is the least true difference that so many examples show four times out of five; None where it
    cannot be known, because the differences do not vary.
    """

    examples: int
    difference: float  # mean
    interval: Interval  # that holds the true one in 95 of 100 such comparisons
    p_value: float  # how often chance alone, swapping the two at random, gives as much
    detectable: float | None
    changed: int  # examples whose scores differ at all

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Paired:
    """Ours minus theirs, example by example."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} scores beside {len(theirs)}")
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return Paired(
        examples=len(differences),
        difference=float(differences.mean()),
        interval=interval(differences, seed=seed),
        p_value=p_value(differences, seed=seed),
        detectable=detectable(differences),
        changed=int(np.count_nonzero(differences)),
    )


def interval(
    values: Sequence[float] | Floats,
    weights: Sequence[float] | Floats | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A bootstrap interval of the (weighted) mean: BCa, which allows for bias and skewness. NaN of a single value.

    Values drawn anew never leave the range of what was seen, and of three all lie on one side of the truth in a
    quarter of all cases: of fewer than eight it is Student's interval, with the jackknife's error.

    What is drawn anew is whole values with their weights; so where neighbours depend on one another, give blocks of
    them as one value.
    """
    found = np.asarray(values, np.float64)
    mass = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
    if found.ndim != 1 or found.shape != mass.shape or not found.size or not 0 < confidence < 1:
        raise ValueError(f"{found.shape} values, {mass.shape} weights, confidence {confidence}")
    if found.size == 1 or not np.isfinite(found).all():
        return math.nan, math.nan
    total, whole = mass.sum(), float((found * mass).sum() / mass.sum())
    if (found == found[0]).all():
        return whole, whole
    if found.size < _FEW:
        away = whole - (whole * total - found * mass) / (total - mass)
        error = math.sqrt((found.size - 1) / found.size * float(((away - away.mean()) ** 2).sum()))
        half = _student((1 + confidence) / 2, found.size - 1) * error
        return whole - half, whole + half
    parts = _draws(found.size, resamples, seed)
    drawn = np.concatenate([(found[rows] * mass[rows]).sum(1) / mass[rows].sum(1) for rows in parts])
    without = (whole * total - found * mass) / (total - mass)  # the jackknife's means
    low, high = _corrected(drawn, whole, without, confidence)
    return float(np.quantile(drawn, low)), float(np.quantile(drawn, high))


def _corrected(drawn: Floats, whole: float, without: Floats, confidence: float) -> Interval:
    """Where in the drawn means the interval's ends lie (Efron 1987), further out where values are few.

    Without the latter (Hesterberg 2015), an interval of ten exponential values holds the truth in 87 cases of 100; with
    it in 92.
    """
    below = (np.count_nonzero(drawn < whole) + 0.5 * np.count_nonzero(drawn == whole)) / drawn.size
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (drawn.size + 1)), drawn.size / (drawn.size + 1)))
    away = without.mean() - without
    spread = float((away**2).sum())
    skew = float((away**3).sum()) / (6 * spread**1.5) if spread else 0.0
    few = math.sqrt(away.size / (away.size - 1)) * _student((1 + confidence) / 2, away.size - 1)
    low, high = (_NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in (-few, few))
    return low, high


def _draws(size: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows of `size` places each, drawn with replacement; `count` in all, not all at once."""
    source, step = np.random.default_rng(seed), max(1, _AT_ONCE // size)
    for start in range(0, count, step):
        yield source.integers(0, size, (min(step, count - start), size))


def p_value(differences: Sequence[float] | Floats, *, shuffles: int = SHUFFLES, seed: int = 0) -> float:
    """How likely a mean as far from zero is, if which system is which were tossed anew for each example.

    Every way of tossing, where there are fewer than `shuffles`; otherwise so many at random, and what was seen counts
    as one of them.
    """
    found = np.asarray(differences, np.float64)
    found = found[found != 0]
    if not found.size:
        return 1.0
    seen = abs(found.sum()) - 1e-12 * np.abs(found).sum()  # the order of adding may not decide
    if found.size < 40 and 2**found.size <= shuffles:
        signs = 1.0 - 2.0 * ((np.arange(2**found.size)[:, None] >> np.arange(found.size)) & 1)
        return float(np.mean(np.abs(signs @ found) >= seen))
    source, step, extreme = np.random.default_rng(seed), max(1, _AT_ONCE // found.size), 0
    for start in range(0, shuffles, step):
        signs = 1.0 - 2.0 * source.integers(0, 2, (min(step, shuffles - start), found.size))
        extreme += int(np.count_nonzero(np.abs(signs @ found) >= seen))
    return (extreme + 1) / (shuffles + 1)


def detectable(
    differences: Sequence[float] | Floats, *, confidence: float = CONFIDENCE, power: float = POWER
) -> float | None:
    """The least true mean that so many differences, varying as these do, would show with this power."""
    found = np.asarray(differences, np.float64)
    if found.size < 2 or not np.isfinite(found).all():
        return None
    error = float(found.std(ddof=1)) / math.sqrt(found.size)
    both = _student((1 + confidence) / 2, found.size - 1) + _student(power, found.size - 1)
    return both * error or None


def _student(share: float, freedom: int) -> float:
    """Student's quantile: exact for one and two degrees of freedom, beyond by Fisher's expansion around the normal."""
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = _NORMAL.inv_cdf(share)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
