"""The held-out texts that travel with the repository: models/data."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tools.train.corpus import rows
from tools.train.corpus.forms import PAGE, chatml, docsum_text

DATA = Path(__file__).parents[3] / "models" / "data"
_BYTES = 250_000  # of one file
_TESTED = 480  # functions of the test CSV
_LONGEST_DOCUMENT = {"code": 16_000, "docs": 12_000, "stories": 6_000, "functions": 4_000, "chat": 6_000}
Row = dict[str, Any]


def write_heldout(work: Path, data: Path) -> None:
    """One text per model and the summaries' CSV, from the held-out half of the work folder."""
    data.mkdir(parents=True, exist_ok=True)
    tested = {row["code"] for row in _write_csv(work, data / "docsum_test.csv")}
    functions = [row for row in _drawn(work, "functions") if row["code"] not in tested]
    texts = {
        "pycoder": (row["text"] for row in _drawn(work, "code")),
        "docsum": (docsum_text(row["code"], row["summary"]) for row in functions),
        "tinychat": (chatml(row["messages"]) for row in _drawn(work, "chat")),
        "tinygal": (row["text"] for row in _drawn(work, "docs")),
        "tinygpt2": (row["text"] for row in _drawn(work, "stories")),
    }
    for name, documents in texts.items():
        with (data / f"{name}_heldout.txt").open("w", encoding="utf-8", newline="\n") as file:
            file.write(PAGE.join(_filled(documents)))


def identity(row: Row) -> str:
    """A name for a row that stays while its project, path and content do."""
    told = "\0".join([row.get("project", ""), row.get("path", ""), row.get("code") or row.get("text") or _said(row)])
    return hashlib.sha256(told.encode()).hexdigest()[:40]


def _said(row: Row) -> str:
    return chatml(row["messages"])


def _drawn(work: Path, kind: str) -> Iterator[Row]:
    """Held-out rows that are not too long, projects taking turns, in an order by hash."""
    longest = _LONGEST_DOCUMENT[kind]
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows.read(work / kind / "heldout.jsonl.xz"):
        if len(row.get("code") or row.get("text") or _said(row)) <= longest:
            groups[row.get("project", "")].append(row)
    for turn in zip_longest(*(sorted(group, key=identity) for _, group in sorted(groups.items()))):
        yield from (row for row in turn if row is not None)


def _filled(documents: Iterable[str]) -> Iterator[str]:
    """Whole documents up to the limit; the first that does not fit ends it."""
    size = 0
    for document in documents:
        size += len(document.encode()) + len(PAGE)
        if size > _BYTES:
            return
        yield document


def _write_csv(work: Path, path: Path) -> list[Row]:
    """The test of summaries: id, article, highlights, quoted as CNN/DailyMail's CSV is."""
    chosen = [row for row in _drawn(work, "functions") if _good(row)][:_TESTED]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "article", "highlights"])
        table.writerows([identity(row), row["code"], row["summary"]] for row in chosen)
    return chosen


def _good(row: Row) -> bool:
    """Worth testing with: some body to summarise and a sentence that says something about it."""
    lines, words = row["code"].count("\n") + 1, row["summary"].split()
    return 5 <= lines <= 40 and 5 <= len(words) <= 20
