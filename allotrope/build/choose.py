"""Choosing among tactics that were checked and timed. Pure functions over records; nothing is measured here.

A *line* is one way to serve all row buckets of a call: a tactic per bucket, one packing for its weights
and, unless batch variance is allowed, one row class. Listing order decides what stands first; a challenger
must win by more than the noise of both, and within the noise the smaller error wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from allotrope.build.timings import Measured

_DECODE = 2.0
Packings = tuple[tuple[str, str], ...]  # (weight operand, packing), sorted


@dataclass(frozen=True)
class Trial:
    """One tactic on one problem. `refusal` is why it may not be chosen; `measured` is None if it was not timed."""

    tactic: str
    version: int
    row_class: str | None
    packings: Packings
    refusal: str | None = None
    max_error: float = math.inf
    floor_error: float = 0.0  # of the plain version, for comparison
    measured: Measured | None = None
    note: str | None = None  # why it has not the row class that it claims
    capturable: bool = True  # a graph can hold it


@dataclass(frozen=True)
class Line:
    """A tactic per bucket. `score` sums over buckets its time in units of the fastest tactic's there.

    The first bucket, one request that decodes, counts `_DECODE` times: a prompt is computed in a step or a
    few, its answer takes a step per token.
    """

    trials: tuple[Trial, ...]
    packings: Packings
    row_class: str | None
    score: float
    noise: float

    @property
    def error(self) -> float:
        """The worst bucket's."""
        return max(trial.max_error for trial in self.trials)


def lines(buckets: Sequence[Sequence[Trial]], *, any_class: bool) -> list[Line]:
    """Every line that serves all buckets, in listing order of its first tactic."""
    usable = [[trial for trial in bucket if trial.refusal is None] for bucket in buckets]
    fastest = [min((t.measured.seconds for t in bucket if t.measured), default=1.0) for bucket in usable]
    found = []
    for packings, row_class in _kinds(usable, any_class):
        chosen = [
            pick([t for t in bucket if t.packings == packings and (any_class or t.row_class == row_class)])
            for bucket in usable
        ]
        trials = tuple(trial for trial in chosen if trial is not None)
        if len(trials) < len(buckets):
            continue
        times = [(t.measured or Measured(0.0, 0.0), unit) for t, unit in zip(trials, fastest, strict=True)]
        classes = {trial.row_class for trial in trials}
        found.append(
            Line(
                trials,
                packings,
                classes.pop() if len(classes) == 1 else None,
                _weighted([time.seconds / unit for time, unit in times]),
                _weighted([time.noise / unit for time, unit in times]),
            )
        )
    return found


def _weighted(relative: Sequence[float]) -> float:
    return sum(relative) + (_DECODE - 1) * relative[0]


def _kinds(usable: Sequence[Sequence[Trial]], any_class: bool) -> list[tuple[Packings, str | None]]:
    seen = [(t.packings, None if any_class else t.row_class) for bucket in usable for t in bucket]
    return [kind for kind in dict.fromkeys(seen) if any_class or kind[1] is not None]


def pick(trials: Iterable[Trial]) -> Trial | None:
    """The best of usable trials on one problem."""
    best: Trial | None = None
    for trial in trials:
        if best is None or _beats((trial.measured, trial.max_error), (best.measured, best.max_error)):
            best = trial
    return best


def best_line(candidates: Sequence[Line]) -> Line | None:
    """The best of lines."""
    best: Line | None = None
    for line in candidates:
        timed = all(trial.measured for trial in line.trials)
        challenger = Measured(line.score, line.noise) if timed else None
        if best is None or _beats((challenger, line.error), (Measured(best.score, best.noise), best.error)):
            best = line
    return best


def _beats(challenger: tuple[Measured | None, float], holder: tuple[Measured | None, float]) -> bool:
    (new, new_error), (old, old_error) = challenger, holder
    if new is None or old is None:  # untimed: listing order stands
        return False
    noise = new.noise + old.noise
    if new.seconds < old.seconds - noise:
        return True
    return abs(new.seconds - old.seconds) <= noise and new_error < old_error


def parts_win(whole: Line, parts: Sequence[Line]) -> bool:
    """Whether the calls that a fused one replaces beat it by more than the noise, summed over buckets.

    The fused alternative stands first in the listing, so without timings, or within the noise, it holds.
    """
    fused, split = _seconds([whole]), _seconds(parts)
    if fused is None or split is None:
        return False
    units = [min(f.seconds, s.seconds) for f, s in zip(fused, split, strict=True)]
    gain = sum((f.seconds - s.seconds) / unit for f, s, unit in zip(fused, split, units, strict=True))
    noise = sum((s.noise + f.noise) / unit for f, s, unit in zip(fused, split, units, strict=True))
    return gain > noise


def _seconds(group: Sequence[Line]) -> list[Measured] | None:
    """Time and noise per bucket, summed over the calls."""
    buckets = []
    for trials in zip(*(line.trials for line in group), strict=True):
        known = [trial.measured for trial in trials if trial.measured is not None]
        if len(known) < len(trials):
            return None
        buckets.append(Measured(sum(m.seconds for m in known), sum(m.noise for m in known)))
    return buckets


def collapse(bounds: Sequence[int | None], line: Line) -> tuple[tuple[int | None, str], ...]:
    """A plan entry's `tactics`: neighbours with the same tactic become one."""
    entries: list[tuple[int | None, str]] = []
    for bound, trial in zip(bounds, line.trials, strict=True):
        if entries and entries[-1][1] == trial.tactic:
            entries.pop()
        entries.append((bound, trial.tactic))
    return tuple(entries)


def common_packings(offers: Iterable[Mapping[str, set[str]]]) -> dict[str, set[str]]:
    """For each weight, the packings that every call reading it can live with."""
    allowed: dict[str, set[str]] = {}
    for offer in offers:
        for weight, packings in offer.items():
            allowed[weight] = allowed[weight] & packings if weight in allowed else set(packings)
    return allowed
