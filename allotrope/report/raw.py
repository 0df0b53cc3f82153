"""The results themselves inside the page, so that every figure can be taken out of it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.report.escape import script_json
from allotrope.report.sources import KINDS, Subject
from allotrope.units import bytes_text

BUDGET = 4 * 2**20  # bytes of results in a page; pictures and tables need the rest of what a page may have
_SAMPLES = ("samples", "outputs")


@dataclass(frozen=True)
class Saved:
    """A result in the page. `cut` says what had to stay out of it."""

    anchor: str
    name: str
    label: str
    value: Any
    cut: str = ""


def saved(subjects: Sequence[Subject]) -> list[Saved]:
    """Every result that fits: whole, or without its samples; a word on each that does not."""
    found: list[Saved] = []
    room = BUDGET
    for place, subject in enumerate(subjects, start=1):
        files = [(kind, subject.results[kind].raw) for kind in KINDS if kind in subject.results]
        files.append(
            ("engine", {key: value for key, value in subject.engine.raw.items() if key not in ("plan", "kernels")})
        )
        for kind, value in files:
            label = f"{subject.name}: {kind}.json" if len(subjects) > 1 else f"{kind}.json"
            taken, cut = _fitted(value, room, label)
            size = len(script_json(taken))
            room -= size
            name = f"{subject.folder.name or 'engine'}-{kind}.json"
            found.append(Saved(f"raw-{place}-{kind}", name, label, taken, cut))
    return found


def _fitted(value: Any, room: int, label: str) -> tuple[Any, str]:
    """The value as it is, without samples where those do not fit, or nothing."""
    size = len(json.dumps(value))
    if size * 1.05 <= room:
        return value, ""
    slim = _without(value)
    told = f"{label} has {bytes_text(size)} with its samples, too much for a page"
    if len(json.dumps(slim)) * 1.05 <= room:
        return slim, f"{told}: they are in the file itself."
    return {}, f"{told}: it is not in this page."


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in _SAMPLES}
    return [_without(item) for item in value] if isinstance(value, list) else value
