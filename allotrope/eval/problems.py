"""Programming problems in HumanEval's format: one JSON object a line, also gzipped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.eval.files import read_text

FIELDS = ("task_id", "prompt", "test", "entry_point", "canonical_solution")
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What begins something else than the function that was asked for."""


@dataclass(frozen=True)
class Problem:
    """A function's head, and what it is tested by."""

    task_id: str
    prompt: str
    test: str
    entry_point: str
    canonical_solution: str

    def program(self, completion: str) -> str:
        """What runs to its end if the completion is right."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


def read(path: Path, most: int) -> list[Problem]:
    """The first `most` problems."""
    found = list[Problem]()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or len(found) == most:
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError("not JSON", where=where, remedy="give one JSON object a line") from error
        wrong = [name for name in FIELDS if not isinstance(values, dict) or not isinstance(values.get(name), str)]
        if wrong:
            raise UsageError(f"no text under {', '.join(wrong)}", where=where, remedy=f"give {', '.join(FIELDS)}")
        if not values["entry_point"].isidentifier():
            raise UsageError("entry_point is no function's name", where=where)
        found.append(Problem(*(values[name] for name in FIELDS)))
    if not found:
        raise UsageError("no problems in it", where=str(path), remedy="give one JSON object a line")
    return found


def ended(text: str) -> str:
    """A completion up to where something else begins."""
    places = [place for stop in STOPS if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
