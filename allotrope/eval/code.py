"""The code task: both sides complete functions, and each completion is run against the problem's test."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.errors import UsageError
from allotrope.eval.executing import Outcome, execute
from allotrope.eval.paired import compare
from allotrope.eval.problems import STOPS, Problem, ended, read
from allotrope.eval.summaries import Progress

if TYPE_CHECKING:  # torch comes late: what is wrong with a file is said at once
    from allotrope.eval.sides import Sides
    from allotrope.eval.writing import Ids, Written

FILE = "completions.jsonl"
NOT_EXECUTED = "not executed: --execute was not given"
_TAIL = 16  # tokens among which a stop string that has just been completed begins
_LEAST = 16  # tokens that a completion must have room for
_MOST = 10**6


@dataclass(frozen=True)
class Asked:
    """Which problems, and how long an answer may be."""

    file: Path
    problems: int
    max_output: int
    batch_size: int
    execute: bool
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("problems", _MOST), ("max_output", _MOST), ("batch_size", 4096)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise UsageError(f"--{name.replace('_', '-')} is {value}", remedy=f"give a number from 1 to {most}")


@dataclass(frozen=True)
class Found:
    """Completions of both sides and, if they were run, how each ended. What did not fit has none and fails."""

    asked: Asked
    problems: Sequence[Problem]
    fitting: Sequence[int]
    written: tuple[Written, Written]
    texts: tuple[list[str], list[str]]  # of those that fit
    outcomes: tuple[list[Outcome], list[Outcome]] | None

    def passes(self, side: int) -> list[float] | None:
        """1 for each problem whose completion passes, else 0; None where nothing was run."""
        if self.outcomes is None:
            return None
        by_place = dict(zip(self.fitting, self.outcomes[side], strict=True))
        return [float(i in by_place and by_place[i].passed) for i in range(len(self.problems))]

    def figures(self) -> dict[str, Any]:
        """What stands at the top of a result."""
        ours, theirs = self.passes(0), self.passes(1)
        if ours is None or theirs is None:
            return {
                "pass_at_1": None,
                "original_pass_at_1": None,
                "pass_at_1_why_not": NOT_EXECUTED,
                "pass_at_1_paired": None,
            }
        return {
            "pass_at_1": math.fsum(ours) / len(ours),
            "original_pass_at_1": math.fsum(theirs) / len(theirs),
            "pass_at_1_why_not": None,
            "pass_at_1_paired": compare(ours, theirs, seed=self.asked.seed).to_json(),
        }

    def described(self) -> dict[str, Any]:
        """What was evaluated."""
        runs = [] if self.outcomes is None else self.outcomes[0]
        sides = dict(zip(("engine", "original"), self.written, strict=True))
        return {
            "file": str(self.asked.file),
            "problems": len(self.problems),
            "too_long": len(self.problems) - len(self.fitting),
            "max_output": self.asked.max_output,
            "same_completions": sum(a == b for a, b in zip(*self.texts, strict=True)),
            "executed": self.outcomes is not None,
            "locked_by": list(runs[0].granted) if runs else [],
            "seconds": {name: one.seconds for name, one in sides.items()},
            "generated_tokens": {name: one.tokens for name, one in sides.items()},
        }

    def samples(self) -> list[dict[str, Any]]:
        """Each problem's completions, side by side, and how they ended."""
        found = []
        for i, place in enumerate(self.fitting):
            one: dict[str, Any] = {
                "task_id": self.problems[place].task_id,
                "completion": self.texts[0][i],
                "original": self.texts[1][i],
            }
            if self.outcomes is not None:
                one |= {"ended": self.outcomes[0][i].ended, "original_ended": self.outcomes[1][i].ended}
            found.append(one)
        return found

    def keep(self, folder: Path) -> Path:
        """The completions, in the format that HumanEval's own tool reads; the original's beside them."""
        path = folder / FILE
        lines = [json.dumps(one, ensure_ascii=True) for one in self.samples()]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path


def read_problems(asked: Asked) -> list[Problem]:
    """The problems; said before an engine is opened, or even built."""
    return read(asked.file, asked.problems)


def complete(sides: Sides, asked: Asked, problems: Sequence[Problem], progress: Progress) -> Found:
    """Both sides' completions; run, if that was asked."""
    from allotrope.eval.writing import by_engine, by_original, spelled

    prompts = [sides.tokenizer.encode(problem.prompt) for problem in problems]
    fitting = [i for i, ids in enumerate(prompts) if len(ids) + min(asked.max_output, _LEAST) <= sides.context]
    if not fitting:
        raise UsageError(
            f"no problem fits: the shortest prompt takes {min(map(len, prompts))} of {sides.context} tokens",
            where=str(asked.file),
            remedy="build with a larger --max-len",
        )
    ids = [prompts[i] for i in fitting]
    limits = [min(asked.max_output, sides.context - len(one)) for one in ids]

    def enough(said: Ids) -> bool:
        tail = sides.tokenizer.decode(said[-_TAIL:])
        return any(stop in tail for stop in STOPS)

    with progress(2 * len(ids), "completing functions") as shown:
        ours = by_engine(sides.opened, ids, limits, shown.advance, STOPS)
        theirs = by_original(
            sides.original, ids, limits, sides.stops, batch=asked.batch_size, done=shown.advance, enough=enough
        )
    mine, others = (
        [ended(spelled(sides.tokenizer, asking, said)) for asking, said in zip(ids, side.ids, strict=True)]
        for side in (ours, theirs)
    )
    outcomes = _run([problems[i] for i in fitting], (mine, others), progress) if asked.execute else None
    return Found(asked, problems, fitting, (ours, theirs), (mine, others), outcomes)


def _run(
    problems: Sequence[Problem], texts: tuple[list[str], list[str]], progress: Progress
) -> tuple[list[Outcome], list[Outcome]]:
    """How each completion ends; the same one is run once."""
    known: dict[str, Outcome] = {}
    with progress(2 * len(problems), "running tests") as shown:
        found: tuple[list[Outcome], list[Outcome]] = ([], [])
        for side, outcomes in zip(texts, found, strict=True):
            for problem, text in zip(problems, side, strict=True):
                program = problem.program(text)
                known[program] = outcome = known.get(program) or execute(program)
                outcomes.append(outcome)
                shown.advance()
    return found
