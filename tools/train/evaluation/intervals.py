"""Bootstrap intervals: how far a figure would move with other examples of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ROUNDS = 10_000
SEED = 0
Array = np.ndarray[Any, Any]


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of sum(tops) / sum(bottoms), examples drawn anew with replacement."""
    return _interval(_sums(np.asarray(tops, float)) / _sums(np.asarray(bottoms, float)))


def mean(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean; for differences of pairs, the paired one."""
    return ratio(values, np.ones(len(values)).tolist())


def share(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, sound at its ends, too."""
    z, p = 1.959964, count / total
    middle, spread = p + z * z / (2 * total), z * ((p * (1 - p) + z * z / (4 * total)) / total) ** 0.5
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _sums(values: Array) -> Array:
    """Sums over resamples, the same ones for every array of one length: that is what pairs them."""
    source = np.random.default_rng(SEED)
    found = [values[source.integers(0, len(values), (100, len(values)))].sum(1) for _ in range(ROUNDS // 100)]
    return np.concatenate(found)


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
