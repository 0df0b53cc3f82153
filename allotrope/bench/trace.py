"""A recorded load: one request per line, when it came and how long prompt and answer were. No text."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from allotrope.errors import UsageError

TIME, PROMPT, OUTPUT = "TIMESTAMP", "ContextTokens", "GeneratedTokens"  # as Azure publishes its traces


@dataclass(frozen=True)
class Recorded:
    """One request as recorded; `at` is in seconds since the first."""

    at: float
    prompt: int
    output: int


def read(path: Path, count: int | None = None) -> tuple[Recorded, ...]:
    """The first `count` requests of a trace, in order of arrival."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(itertools.islice(_rows(csv.DictReader(file), path), count))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the trace: {reason}", where=str(path)) from error
    if not rows:
        raise UsageError("the trace holds no request", where=str(path))
    rows.sort(key=lambda row: row.at)
    return tuple(Recorded(row.at - rows[0].at, row.prompt, row.output) for row in rows)


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[Recorded]:
    missing = [name for name in (TIME, PROMPT, OUTPUT) if name not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(
            f"the trace has no column {missing[0]}",
            where=str(path),
            remedy=f"its first line must name {TIME}, {PROMPT} and {OUTPUT}",
        )
    for row in reader:
        yield Recorded(
            _seconds(row, path, reader.line_num),
            *(_count(row, name, path, reader.line_num) for name in (PROMPT, OUTPUT)),
        )


def _seconds(row: Mapping[str, str | None], path: Path, line: int) -> float:
    text = row[TIME] or ""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"line {line}: {TIME} is {text[:40]!r}, which is no time", where=str(path)) from error
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()


def _count(row: Mapping[str, str | None], name: str, path: Path, line: int) -> int:
    text = (row[name] or "").strip()
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UsageError(f"line {line}: {name} is {text[:40]!r}; it must be a whole number from 1", where=str(path))
    return int(text)
