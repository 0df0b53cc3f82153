"""From samples to effects and words: what shows, what is noise, what adds up. No engine is built here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.ablate import effects, words
from allotrope.ablate.parts import Part, check, chosen
from allotrope.ablate.rows import interactions, rows
from allotrope.ablate.session import Findings, Question
from allotrope.ablate.setting import Change, Setting
from allotrope.ablate.speed import Cell, Runner, Sample, same_tokens
from allotrope.ablate.variants import usual
from allotrope.errors import UsageError
from allotrope.runtime.options import RuntimeOptions

CELL = Cell(2, 16, 8)
WHOLE = Setting({"device": "cpu"}, {"check_step": 4, "skip_step": 0})
PARTS = (
    Part("tactics", Change({"plan": "reference"}), Change({"plan": "best"})),
    Part("late-stop", Change({}, {"check_step": 1}), Change({}, {"check_step": 4})),
    Part("dud", Change({"without": ("dud",)}), Change({"plus": ("dud",)})),
    Part("step", Change({}, {"executor": "eager"}), reason="no step is captured: of no use here"),
)


def series(seconds: float, *, rounds: int = 7, spread: float = 0.003, seed: int = 0) -> list[Sample]:
    """Rounds of which each is slow or quick as a whole, by up to a half, and each sample a little besides."""
    common = np.random.default_rng(99).uniform(1, 1.5, rounds)
    own = np.random.default_rng(seed).normal(1, spread, rounds)
    return [Sample(seconds * a * b, seconds * a * b / 4) for a, b in zip(common, own, strict=True)]


def findings(latencies: dict[str, float]) -> Findings:
    found = Findings(Question("model", WHOLE, {}, (CELL,)), usual(WHOLE, PARTS))
    found.reasons = {variant.name: variant.reason for variant in found.variants if variant.reason}
    for seed, (name, seconds) in enumerate(latencies.items()):
        runner = Runner(name, Path(), RuntimeOptions(), weights_bytes=1000, token_bytes=10)
        runner.samples[CELL] = series(seconds, seed=seed)
        found.runners[name] = runner
    return found


LATENCIES = {
    "all on": 1.0,
    "all on, again": 1.0,
    "reference": 2.0,
    "without tactics": 1.6,
    "without late-stop": 1.0,
    "without dud": 0.8,
    "only tactics": 1.25,
    "only late-stop": 2.0,
    "only dud": 2.5,
}


def test_a_difference_shows_through_rounds_that_differ_more() -> None:
    found = effects.gain(series(1.02, seed=1), series(1.0, seed=2), 0)
    assert found is not None and found.low < 1.02 < found.high and found.shows
    same = effects.gain(series(1.0, seed=3), series(1.0, seed=4), 0)
    assert same is not None and not same.shows
    assert effects.gain(series(1.02, seed=1), series(1.0, seed=2), 0, noise=0.05).shows is False  # type: ignore[union-attr]
    assert effects.gain(series(1.0)[:1], series(1.0), 0) is None


def test_a_gain_lies_in_its_own_interval() -> None:
    """One disturbed round pulls the mean, whose interval it is, and not the middle."""
    calm = [Sample(1.0 + i / 1e4, 0.1) for i in range(5)]
    disturbed = [Sample(3.0, 0.1), *calm[1:]]
    for pair in ((disturbed, calm), (calm, disturbed)):
        found = effects.gain(*pair, 0)
        assert found is not None and found.low <= found.ratio <= found.high and not found.shows


@pytest.mark.parametrize("rounds", [3, 7])
def test_false_alarms_are_few(rounds: int) -> None:
    """An engine beside itself, 200 times: at 99 %."""
    sides = [[series(1.0, rounds=rounds, seed=2 * i + side) for i in range(200)] for side in (0, 1)]
    pairs = [effects.gain(one, other, 0) for one, other in zip(*sides, strict=True)]
    assert sum(pair is not None and pair.shows for pair in pairs) <= 8


def test_rows_and_words() -> None:
    found = {row.variant.name: row for row in rows(findings(LATENCIES))}
    values = {name: row.values for name, row in found.items()}
    assert (
        values["without tactics"]["gain"] == pytest.approx(1.6, rel=0.02)
        and values["without tactics"]["more_than_noise"]
    )
    assert values["without dud"]["gain"] == pytest.approx(0.8, rel=0.02)
    assert values["only tactics"]["gain"] == pytest.approx(1.6, rel=0.02)
    assert values["only dud"]["gain"] == pytest.approx(0.8, rel=0.02)
    assert values["reference"]["gain"] == pytest.approx(2.0, rel=0.02)
    assert values["without late-stop"]["more_than_noise"] is False
    assert values["all on"]["memory_bytes"] == 1000 + 10 * 2 * 24 and values["all on"]["kv_bytes"] == 480
    first = values["all on"]["cells"][0]
    assert first["tokens_per_s"] == pytest.approx(2 * 8 / first["latency_ms"] * 1e3)
    assert first["prefill_ms"] + first["decode_ms"] == pytest.approx(first["latency_ms"])
    assert values["without step"]["latency_ms"] is None and "of no use here" in values["without step"]["reason"]
    told = words.paragraph(list(found.values()))
    assert "All parts together make it 2.0" in told and "tactics (×1.6" in told
    assert "Nothing that shows: late-stop." in told
    assert "Slowing things down: dud (2" in told


def test_so_few_rounds_are_said_to_tell_little() -> None:
    assert "Of so few rounds" in words.legend(3, 0.01) and "Of so few rounds" not in words.legend(5, 0.01)


def test_interactions() -> None:
    """Parts that overlap, and parts that are independent."""
    alone, off = interactions(rows(findings(LATENCIES)))
    assert alone.what == "each part alone" and set(alone.each) == {"tactics", "late-stop"}
    assert alone.product == pytest.approx(1.6, rel=0.03) and alone.factor == pytest.approx(1.25, rel=0.03)
    assert "they help one another" in words.interaction_line(alone)
    assert off.factor == pytest.approx(2.0 / 1.6, rel=0.03)
    independent = LATENCIES | {"reference": 1.6, "only tactics": 1.0, "only late-stop": 1.6}
    assert "(they add up)" in words.interaction_line(interactions(rows(findings(independent)))[0])


def test_a_step_that_goes_with_the_tactics_is_not_counted_twice() -> None:
    """Without native tactics no step is native either: what taking both out costs would be the step's twice."""
    parts = (*PARTS[:2], replace(PARTS[3], reason=None, not_alone="of no use"))
    told = findings(LATENCIES | {"without step": 1.4})
    told.variants = usual(WHOLE, parts)
    found = rows(told)
    (_, off) = interactions(found)
    assert set(off.each) == {"tactics", "late-stop", "step"}
    for row in found:
        row.values["executor"] = "eager" if row.variant.name in ("without tactics", "reference") else "native"  # type: ignore[index]
    (_, off) = interactions(found)
    assert set(off.each) == {"tactics", "late-stop"}


def test_an_interrupted_run_has_rows_without_figures() -> None:
    found = findings({})
    found.interrupted = True
    made = rows(found)
    assert {row.values["reason"] for row in made} >= {"interrupted before it was measured"}
    assert words.paragraph(made) == "Nothing could be compared." and not interactions(made)


def test_tokens_count_up_to_the_first_difference() -> None:
    one, other = (Runner(name, Path(), RuntimeOptions()) for name in "ab")
    one.tokens[CELL, 0], other.tokens[CELL, 0] = [[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]
    assert same_tokens(one, other) == 4 / 6
    assert same_tokens(one, Runner("c", Path(), RuntimeOptions())) is None


def test_settings() -> None:
    more = WHOLE.but(Change({"without": ("a",), "kv": "int8"})).but(Change({"without": ("b",), "kv": None}))
    assert more.build == {"device": "cpu", "without": ("a", "b"), "kv": None} and WHOLE.build == {"device": "cpu"}
    bare = replace(more, running={"check_step": 4, "page_size": 8}).bare
    assert bare.build == {"device": "cpu", "plan": "reference"}
    assert bare.running == {"check_step": 1, "skip_step": 0, "page_size": 8, "executor": "auto"}
    assert bare.but(Change({"plan": "best", "without": ()})).key != bare.key == bare.but(None).key


def test_settings_that_are_the_same_are_measured_once() -> None:
    twice = [*PARTS, replace(PARTS[2], name="dud once more")]
    found: dict[str, Any] = {variant.name: variant for variant in usual(WHOLE, twice)}
    assert found["without dud once more"].reason == "the same as without dud"
    assert found["all on, again"].reason is None


def test_parts_by_name() -> None:
    check(["qkv", "attention", "attention/torch_sdpa", "weights=int4", "kv=fp8", "native-kernels", "late-stop"])
    with pytest.raises(UsageError, match="no part 'tunning' to take out; did you mean tuning"):
        check(["tunning"])
    assert [part.name for part in chosen(PARTS, ["dud"])] == ["dud"]
    assert chosen(PARTS, ["qkv"])[0].reason == "the engine that the builder made here has no such part"
    assert chosen([*PARTS, Part("rare", usual=False)], []) == list(PARTS)
