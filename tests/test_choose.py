"""Choosing among timed tactics: noise, errors, row classes, packings. Records only; nothing is measured."""

from __future__ import annotations

from dataclasses import replace

from allotrope.build import choose
from allotrope.build.choose import Trial
from allotrope.build.timings import Measured


def trial(
    name: str, seconds: float | None, error: float = 1e-7, row_class: str | None = "c", packing: str = "rows"
) -> Trial:
    measured = None if seconds is None else Measured(seconds, seconds * 0.02)
    return Trial(name, 1, row_class, (("weight", packing),), None, error, 0.0, measured)


def best(*buckets: list[Trial], any_class: bool = False) -> list[str]:
    line = choose.best_line(choose.lines(buckets, any_class=any_class))
    assert line is not None
    return [found.tactic for found in line.trials]


def test_choosing() -> None:
    a, b = trial("a", 1.0), trial("b", 0.9)
    assert best([a, b]) == ["b"]
    assert best([a, trial("b", 0.97)]) == ["a"]  # within the noise the first stands
    assert best([a, trial("b", 0.97, error=1e-8)]) == ["b"]  # unless the other errs less
    assert best([trial("a", 0.97), trial("b", 1.0, error=1e-8)]) == ["b"]
    assert best([a, replace(trial("b", 0.1), refusal="wrong")]) == ["a"]
    assert best([a, trial("b", 0.1, row_class=None)]) == ["a"]
    assert best([a, trial("b", 0.1, row_class=None)], any_class=True) == ["b"]
    assert choose.best_line(choose.lines([[trial("b", 1.0, row_class=None)]], any_class=False)) is None
    # one class over all buckets: d is better in one, c in sum
    one, other = (
        [trial("c1", 1.0), trial("d1", 0.5, row_class="d")],
        [trial("c2", 1.0), trial("d2", 9.0, row_class="d")],
    )
    assert best(one, other) == ["c1", "c2"]
    assert best(one, other, any_class=True) == ["d1", "c2"]
    # one packing over all buckets, whatever the class
    cols = [trial("c1", 1.0), trial("p1", 0.9, packing="cols")], [trial("c2", 1.0), trial("p2", 0.8, packing="cols")]
    assert best(*cols) == ["p1", "p2"]
    assert best(cols[0], [trial("c2", 1.0)]) == ["c1", "c2"]
    assert best([trial("a", None), trial("b", None, error=0.0)]) == ["a"]  # untimed: listing order


def test_plan_entries_collapse() -> None:
    line = choose.best_line(choose.lines([[trial("a", 1.0)], [trial("a", 1.0)], [trial("b", 1.0)]], any_class=False))
    assert line is not None
    assert choose.collapse([1, 8, None], line) == ((8, "a"), (None, "b"))
