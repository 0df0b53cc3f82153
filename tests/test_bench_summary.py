"""The figures of a load: percentiles and latencies against values worked out by hand, and numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from allotrope.bench.drive import Times
from allotrope.bench.summary import latencies, percentile, spread
from tests.load_kit import exact_job


def test_percentiles_are_linear_between_neighbours() -> None:
    ten = [50.0, 10, 20, 30, 40, 60, 70, 80, 90, 100]  # order does not matter
    assert percentile(ten, 0.5) == 55  # place 4.5, between 50 and 60
    assert percentile(ten, 0.9) == 91  # place 8.1: 90 + 0.1 · 10
    assert percentile(ten, 0.99) == pytest.approx(99.1)  # place 8.91
    assert (percentile(ten, 0), percentile(ten, 1)) == (10, 100)
    assert percentile([7.0], 0.99) == 7
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert math.isnan(percentile([], 0.5))
    with pytest.raises(ValueError, match=r"share is 90"):
        percentile(ten, 90)


def test_percentiles_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 10, 101, 1000):
        samples = random.lognormal(0, 2, count).tolist()
        found = spread(samples)
        expected = np.percentile(samples, [50, 90, 99])
        assert [found.p50, found.p90, found.p99] == pytest.approx(expected.tolist(), rel=1e-12)
        assert found.mean == pytest.approx(np.mean(samples), rel=1e-12)


def test_latencies_by_hand() -> None:
    first = Times(exact_job(1.0, 5, 4), started=1.5, tokens=[2.0, 2.25, 2.5, 4.0], finish_reason="length")
    single = Times(exact_job(2.0, 5, 1), started=2.0, tokens=[5.0], finish_reason="length")
    lost = Times(exact_job(2.0, 5, 1), finish_reason="error")
    found = latencies([first, single, lost])
    assert found.queue.mean == 250  # (500 + 0) / 2
    assert (found.ttft.mean, found.ttft.p50, found.ttft.p90) == (2000, 2000, 2800)  # 1000 and 3000
    assert found.tpot.mean == found.tpot.p99 == pytest.approx(2000 / 3)  # one request has several tokens
    assert (found.itl.mean, found.itl.p50) == (pytest.approx(2000 / 3), 250)  # 250, 250, 1500
    assert (found.total.mean, found.total.p50) == (3000, 3000)
