"""Finished samples on disk while a comparison runs, so that one that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allotrope.bench.grid import Cell, Sample

FILE = "bench.samples.jsonl"


class Journal:
    """One line a sample. Lines of another question (engine, core, machine, peers, options) are not gone on with."""

    def __init__(self, path: Path, question: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self._samples: dict[tuple[Cell, str], list[Sample]] = {}
        self._answers: dict[tuple[Cell, str, str], list[list[int]]] = {}
        asked = json.dumps(question, sort_keys=True)
        self.found = self._read(asked) if resume else 0
        if not self.found:
            path.write_text(json.dumps({"question": asked}) + "\n", encoding="utf-8")

    def _read(self, asked: str) -> int:
        """How many samples an earlier run of the same question left; a line that was cut off ends them."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return 0
        kept = []
        for line in lines:
            try:
                kept.append(json.loads(line))
            except ValueError:
                break
        if not kept or kept[0] != {"question": asked}:
            return 0
        for place, line in enumerate(kept[1:], 1):
            try:
                self._take(Cell(*line["cell"]), line["runner"], Sample.from_json(line), line.get("tokens"))
            except (TypeError, KeyError, ValueError):
                del kept[place:]
                break
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._path.write_text(text, encoding="utf-8")
        return len(kept) - 1

    def _take(self, cell: Cell, runner: str, sample: Sample, tokens: list[list[int]] | None) -> None:
        self._samples.setdefault((cell, runner), []).append(sample)
        if tokens is not None:
            self._answers.setdefault((cell, runner, sample.group), tokens)

    def add(self, cell: Cell, runner: str, sample: Sample, tokens: list[list[int]] | None) -> None:
        """Keep a sample, and what was answered if that is to be compared."""
        self._take(cell, runner, sample, tokens)
        line: dict[str, Any] = {"cell": [cell.batch, cell.input, cell.output], "runner": runner, **sample.to_json()}
        if tokens is not None:
            line["tokens"] = tokens
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def samples(self, cell: Cell, runner: str, group: str | None = None) -> list[Sample]:
        """A runner's in a cell so far; those of one group of peers."""
        found = self._samples.get((cell, runner), [])
        return found if group is None else [one for one in found if one.group == group]

    def answer(self, cell: Cell, runner: str, group: str) -> list[list[int]] | None:
        """What it said to the first prompts that a group had in the cell."""
        return self._answers.get((cell, runner, group))

    def forget(self) -> None:
        """The whole is kept elsewhere now."""
        self._path.unlink(missing_ok=True)
