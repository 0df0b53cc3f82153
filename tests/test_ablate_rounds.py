"""How many rounds an ablation measures where nobody says: as many as its time allows, fewer where samples agree."""

from __future__ import annotations

from itertools import count, cycle
from pathlib import Path

import pytest

from allotrope.ablate import speed
from allotrope.ablate.speed import Cell, Rounds, Runner, Sample
from allotrope.runtime.options import RuntimeOptions

CELL = Cell(1, 8, 8)


@pytest.mark.parametrize(
    ("each_s", "until", "latencies", "rounds"),
    [
        (1.0, 100.0, (1.0, 1.3), 7),  # samples that do not agree: all there may be
        (1.0, 100.0, (1.0, 1.001), 5),  # that agree
        (1.0, 8.5, (1.0, 1.3), 4),  # a fifth would end too late
        (1.0, 0.0, (1.0, 1.3), 3),  # no time at all: fewer say nothing
        (30.0, 100.0, (1.0, 1.3), 3),
    ],
)
def test_rounds_end_with_the_time_or_where_samples_agree(
    monkeypatch: pytest.MonkeyPatch, each_s: float, until: float, latencies: tuple[float, ...], rounds: int
) -> None:
    now, visits = [0.0], count()
    took = {name: cycle(latencies) for name in ("one", "other")}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def visit(_: Rounds, runner: Runner, __: int) -> None:
        next(visits)
        now[0] += each_s
        runner.samples.setdefault(CELL, []).append(Sample(next(took[runner.name]), 0.1))

    monkeypatch.setattr(Rounds, "_visit", visit)
    monkeypatch.setattr(Rounds, "_first", lambda *_: None)
    runners = [Runner(name, Path(name), RuntimeOptions()) for name in ("one", "other")]
    measured = Rounds(runners, (CELL,), 0, lambda *_: None)
    assert measured.run(None, until, lambda: None) == rounds
    assert next(visits) == 2 * rounds
