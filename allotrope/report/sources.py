"""What a report is made from: engine folders and result files, read as JSON and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allotrope.errors import UsageError
from allotrope.report.value import ResultError, Value

ENGINE = "engine.json"
_HEAD = re.compile(rb'\{"digest": "([0-9a-f]{64})",')
_LARGEST = 256 * 2**20
# Which file is which, by the keys that only it has: the name may be anybody's.
KINDS = {
    "verify": ("verdict", "levels"),
    "bench": ("cells",),
    "summarize": ("rouge",),
    "eval": ("nll_per_token",),
    "ablate": ("rows",),
    "explain": ("accounted",),
}


@dataclass
class Subject:
    """One engine and what is known about it. `notes` are lines on what could not be read."""

    name: str
    folder: Path
    engine: Value
    digest: str | None  # None: engine.json does not hold what its digest says
    results: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(paths: Sequence[Path]) -> list[Subject]:
    """The engines among `paths` in order; a result file belongs to the engine named before it."""
    subjects: list[Subject] = []
    early: list[Path] = []
    for path in paths:
        if path.is_dir():
            subjects.append(_open(path))
        elif not path.exists():
            raise UsageError("no such engine folder or result file", where=str(path))
        elif subjects:
            _add(subjects[-1], path)
        else:
            early.append(path)
    if not subjects:
        raise UsageError("nothing to report: no engine's folder is named", remedy="allotrope report ENGINE -o FILE")
    for path in early:
        _add(subjects[0], path)
    _tell_apart(subjects)
    return subjects


def _open(folder: Path) -> Subject:
    path = folder / ENGINE
    if not path.is_file():
        raise UsageError(f"is no engine (no {ENGINE})", where=str(folder), remedy="build one with `allotrope build`")
    try:
        content = _bytes(path)
        engine = Value(_parsed(content), ENGINE)
        if not engine.is_object:
            raise ResultError("is not an object", where=ENGINE)
    except ResultError as error:
        raise UsageError(error.problem, where=str(path), remedy="build it again") from error
    head = _HEAD.match(content)
    true = head is not None and hashlib.blake2b(content[head.end() :], digest_size=32).hexdigest() == head[1].decode()
    subject = Subject(folder.resolve().name or str(folder), folder, engine, head[1].decode() if head and true else None)
    if not true:
        subject.notes.append(f"{ENGINE}: its content does not match its own digest: changed or damaged after building")
    for found in sorted(folder.glob("*.json")):
        if found.name != ENGINE and not found.name.startswith("."):
            _add(subject, found)
    return subject


def _add(subject: Subject, path: Path) -> None:
    """Take a result file in; what cannot be read is a note, and the rest is shown."""
    try:
        value = Value(_parsed(_bytes(path)), path.name)
        kind = _kind(value, path)
    except ResultError as error:
        subject.notes.append(f"{path.name}: {error.problem}; it is left out")
        return
    if kind is None:
        subject.notes.append(f"{path.name}: of no kind that this version knows; it is left out")
    elif kind == "bench" and kind in subject.results and subject.results[kind].is_object:
        both = {**subject.results[kind].raw, **value.raw}  # cells in one file, a load in another
        subject.results[kind] = Value(both, path.name)
    else:
        subject.results[kind] = value


def _kind(value: Value, path: Path) -> str | None:
    if not value.is_object:
        raise ResultError("is not an object", where=path.name)
    for kind, keys in KINDS.items():
        if all(key in value.raw for key in keys) or (kind == "bench" and "load" in value.raw):
            return kind
    return path.stem if path.stem in KINDS else None


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ResultError("not a regular file of a sane size", where=path.name)
        return path.read_bytes()
    except OSError as error:
        raise ResultError(f"cannot be read: {error.strerror}", where=path.name) from error


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise ResultError("not valid JSON (cut short or damaged)") from error


def _tell_apart(subjects: list[Subject]) -> None:
    """Folders of one name are told apart by their parents', then by number."""
    for level in range(3):
        names = [subject.name for subject in subjects]
        for i, subject in enumerate(subjects):
            if names.count(subject.name) > 1:
                parents = subject.folder.resolve().parents
                more = f"{parents[level].name}/{names[i]}" if level < len(parents) - 1 else f"{names[i]} ({i + 1})"
                subject.name = more
    if len({subject.name for subject in subjects}) < len(subjects):
        for i, subject in enumerate(subjects):
            subject.name = f"{subject.name} ({i + 1})"
