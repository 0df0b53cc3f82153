"""Paired statistics, against theory and tables."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from allotrope.eval import paired
from allotrope.eval.paired import compare, detectable, interval, p_value


def covered(draw: Callable[[np.random.Generator], np.ndarray], trials: int = 600) -> float:
    """How often an interval holds the true mean, which is 0."""
    source, held = np.random.default_rng(1), 0
    for seed in range(trials):
        low, high = interval(draw(source), resamples=1000, seed=seed)
        held += low <= 0 <= high
    return held / trials


@pytest.mark.parametrize(("size", "least"), ((3, 0.90), (5, 0.90), (10, 0.90), (30, 0.92), (100, 0.93)))
def test_an_interval_holds_the_truth_as_often_as_it_says(size: int, least: float) -> None:
    """Of skewed values too. 600 trials tell 95 % to ±1.8 %."""
    assert least <= covered(lambda source: source.normal(size=size)) <= 0.972
    assert least - 0.03 <= covered(lambda source: source.exponential(size=size) - 1) <= 0.972


def test_of_many_values_it_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = interval(values, seed=3)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    narrow = interval(values, confidence=0.5, seed=3)
    assert narrow[1] - narrow[0] == pytest.approx((high - low) * 0.6745 / 1.96, rel=0.05)


def test_of_skewed_values_it_leans_to_the_long_side() -> None:
    """As the Edgeworth expansion says, to the second order: a plain percentile interval leans a third as much."""
    values = -np.log(1 - (np.arange(100) + 0.5) / 100)  # the exponential's own quantiles
    skewness = float(((values - values.mean()) ** 3).mean() / values.std() ** 3)
    shift = (2 * 1.96**2 + 1) * skewness / 6 / math.sqrt(100)
    low, high = interval(values)
    lean = (high - values.mean()) / (values.mean() - low)
    assert lean == pytest.approx((1.96 + shift) / (1.96 - shift), rel=0.04)
    assert interval(-values) == pytest.approx((-high, -low), rel=0.02)


def test_weights_are_how_much_each_value_counts() -> None:
    """Blocks of unlike length: the mean over all their parts, and a heavy block's noise counts more."""
    source = np.random.default_rng(2)
    values, weights = source.normal(size=300), source.integers(1, 50, 300)
    low, high = interval(values, weights)
    mean = float((values * weights).sum() / weights.sum())
    error = math.sqrt(float(((values - mean) ** 2 * weights**2).sum())) / float(weights.sum())  # the linear one
    assert (low + high) / 2 == pytest.approx(mean, abs=0.2 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert interval(values, np.full(300, 7.0), seed=4) == pytest.approx(interval(values, seed=4))


def test_what_does_not_vary_and_what_is_alone() -> None:
    assert interval([0.25] * 9) == (0.25, 0.25) and detectable([0.25] * 9) is None
    assert all(map(math.isnan, interval([1.0]))) and detectable([1.0]) is None
    assert all(map(math.isnan, interval([1.0, math.nan])))
    same = compare([0.5, 0.25], [0.5, 0.25])
    assert (same.difference, same.interval, same.p_value, same.detectable, same.changed) == (0, (0, 0), 1, None, 0)
    for wrong in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="beside"):
            compare(*wrong)
    for arguments in (([],), ([1.0, 2.0], [1.0]), ([1.0, 2.0], None, 1.0)):
        with pytest.raises(ValueError, match="confidence"):
            interval(*arguments[:2], confidence=arguments[2] if len(arguments) > 2 else 0.95)  # type: ignore[arg-type]


def test_the_permutation_test_counts_every_toss_of_a_few() -> None:
    assert p_value([1.0] * 5) == 2 / 32
    assert p_value([3.0, -1.0, 1.0]) == 6 / 8  # |±3 ±1 ±1| ≥ 3: five, three and three with either sign, but not one
    assert p_value([0.0, 0.0]) == 1.0
    assert p_value([0.0, 1.0, 0.0, 2.0]) == 2 / 4  # a zero can be tossed either way: it decides nothing
    assert p_value([0.1] * 3 + [-0.1] * 3) == 1.0  # a mean of zero, whatever the order of adding says


def test_tossing_at_random_gives_nearly_what_every_toss_gives() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 13)
    every = p_value(values, shuffles=10_000)
    assert every == p_value(values, shuffles=2**13) and 0.01 < every < 0.99
    error = math.sqrt(every * (1 - every) / 4000)
    assert p_value(values, shuffles=4000) == pytest.approx(every, abs=4 * error)
    assert p_value([1.0] * 60, shuffles=1000) == 1 / 1001


def test_by_chance_alone_it_cries_as_often_as_it_says() -> None:
    source = np.random.default_rng(4)
    cries = sum(p_value(source.normal(size=25), shuffles=500, seed=seed) <= 0.05 for seed in range(600)) / 600
    assert 0.03 <= cries <= 0.07


@pytest.mark.parametrize("size", (8, 40))
def test_a_true_difference_of_what_is_detectable_shows_four_times_in_five(size: int) -> None:
    """By Student's test, for which it is made, and by the intervals that are printed."""
    source, spread = np.random.default_rng(6), 2.0
    sample = np.resize([spread, -spread], size) * math.sqrt((size - 1) / size)
    least = detectable(sample)
    assert least is not None and sample.std(ddof=1) == pytest.approx(spread)
    shown = [interval(source.normal(least, spread, size), resamples=800, seed=seed)[0] > 0 for seed in range(400)]
    assert 0.75 <= np.mean(shown) <= 0.9  # 400 trials tell 80 % to ±4 %
    assert detectable(sample, power=0.9) > least > (detectable(np.tile(sample, 4)) or 0)  # type: ignore[operator]


def test_students_quantiles_are_the_tables() -> None:
    assert paired._student(0.975, 1) == pytest.approx(12.7062) and paired._student(0.995, 2) == pytest.approx(9.92484)
    table = {(0.975, 5): 2.5706, (0.975, 19): 2.0930, (0.8, 5): 0.9195, (0.8, 19): 0.8610, (0.975, 10**6): 1.95997}
    for (share, freedom), value in table.items():
        assert paired._student(share, freedom) == pytest.approx(value, rel=2e-3)


def test_twenty_articles_show_what_the_literature_says() -> None:
    """Two unpaired runs over 20 articles with sigma 11.06 show 8.70 of ROUGE one-sidedly; pairing is what helps."""
    z = paired._NORMAL.inv_cdf(0.95) + paired._NORMAL.inv_cdf(0.8)
    assert z * math.sqrt(2 * 11.06**2 / 20) == pytest.approx(8.70, abs=0.01)
    values = np.resize([11.06, -11.06], 20) * math.sqrt(2) * math.sqrt(19 / 20)  # unpaired: the variances add
    assert detectable(values, confidence=0.9) == pytest.approx(8.70, rel=0.06)  # Student's few are a little worse


def test_the_same_seed_gives_the_same_figures() -> None:
    source = np.random.default_rng(7)
    ours, theirs = source.random(50), source.random(50)
    assert compare(ours, theirs, seed=1) == compare(ours, theirs, seed=1)
    assert compare(ours, theirs, seed=1) != compare(ours, theirs, seed=2)
    back = compare(theirs, ours, seed=1)
    assert back.difference == -compare(ours, theirs, seed=1).difference and back.changed == 50
    assert set(back.to_json()) == {"examples", "difference", "interval", "p_value", "detectable", "changed"}
