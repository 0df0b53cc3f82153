"""The run that is explained: so many prompts of random tokens, answers exactly as long as asked for, again and again.

Runs with clocks and runs without take turns, so that what the clocks cost is measured along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from allotrope.bench.workload import exactly
from allotrope.errors import NumericalError
from allotrope.explain.notes import QUEUED, TOKENISING, Notes, Seen
from allotrope.explain.spans import NOTHING
from allotrope.explain.watch import WatchedLoop
from allotrope.runtime.loop import Loop
from allotrope.runtime.opening import Opened
from allotrope.runtime.options import RuntimeOptions

PAIRS = 12  # of runs, at most
_LEAST, _BUDGET_S = 3, 6.0  # pairs, and after how long no further one is begun
_TEXT = "detokenising"


@dataclass(frozen=True)
class Asked:
    """What is asked of the engine: `batch` prompts of `into` tokens each, and `output` tokens in answer to each."""

    batch: int
    into: int
    output: int


@dataclass(frozen=True)
class Run:
    """One run with clocks: from the prompts' text to the answers'."""

    began: float
    ended: float
    seen: Seen

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.ended - self.began

    @property
    def answering(self) -> float:
        """When every request had its first token."""
        return max(life.first or self.ended for life in self.seen.lives.values())


@dataclass(frozen=True)
class Runs:
    """All runs: those with clocks in full, those without by their seconds, in pairs."""

    timed: tuple[Run, ...]
    plain: tuple[float, ...]

    @property
    def middle(self) -> Run:
        """The run with clocks that stands in the middle."""
        return sorted(self.timed, key=lambda run: run.seconds)[(len(self.timed) - 1) // 2]


def runs(
    timed: Opened,
    plain: Opened,
    asked: Asked,
    options: RuntimeOptions,
    seed: int,
    advance: Callable[[], object] = lambda: None,
    begin: Callable[[], Notes] = Notes,
) -> Runs:
    """Warm both up, then run them in turns. `begin` gives what a run's notes are put down in."""
    random = np.random.default_rng([seed, 1])
    seen, bare = list[Run](), list[float]()
    began = time.perf_counter()
    for pair in range(-1, PAIRS):
        if pair >= _LEAST and time.perf_counter() - began > _BUDGET_S:
            break
        for turn in (0, 1) if pair % 2 else (1, 0):
            if turn:
                seen.append(clocked(timed, asked, options, random, begin()))
            else:
                bare.append(unclocked(plain, asked, random))
        advance()
    return Runs(tuple(seen[1:]), tuple(bare[1:]))


def clocked(
    opened: Opened, asked: Asked, options: RuntimeOptions, random: np.random.Generator, notes: Notes | None = None
) -> Run:
    """One run with clocks, which are read when it is over."""
    notes = notes or Notes()
    loop = WatchedLoop(opened, notes, skip_step=options.skip_step, check_step=options.check_step)
    began, ended = answer(opened, loop, asked, random, notes.now)
    return Run(began, ended, notes.seen())


def unclocked(opened: Opened, asked: Asked, random: np.random.Generator) -> float:
    """One run without; its seconds."""
    began, ended = answer(opened, opened.loop, asked, random)
    return ended - began


def _prompts(opened: Opened, asked: Asked, random: np.random.Generator) -> list[tuple[str, list[int]]]:
    """Random tokens and, for an engine that reads text, their text. No two runs share them: no cache helps."""
    drawn = random.integers(0, opened.limits.vocab, (asked.batch, asked.into)).tolist()
    reads = opened.tokenizer.reads_text
    return [(opened.tokenizer.decode(ids, False) if reads else "", ids) for ids in drawn]


def answer(
    opened: Opened,
    loop: Loop,
    asked: Asked,
    random: np.random.Generator,
    now: Callable[[str], None] = lambda name: None,
) -> tuple[float, float]:
    """Answer prompts; when that began and ended. Their text is read, and the tokens that it came from are taken:
    a text of random tokens may be read as a few more or fewer. `now` hears what is done from now on."""
    prompts = _prompts(opened, asked, random)
    began = time.perf_counter()
    now(TOKENISING)
    for text, _ in prompts:
        if text:
            opened.reader.read(text, "prompt")
    now(QUEUED)
    given = [(text or None, ids, exactly(asked.output)) for text, ids in prompts]
    generations = [loop.prepare(*one, index=i) for i, one in enumerate(given)]
    for generation in generations:
        loop.submit(generation)
    while not all(generation.ended for generation in generations):
        loop.step()
    now(_TEXT)
    answers = [generation.output() for generation in generations]
    now(NOTHING)
    ended = time.perf_counter()
    failed = next((answer.error for answer in answers if answer.error), None)
    if failed:
        raise NumericalError(failed, remedy="check the engine with: allotrope verify")
    loop.drain()
    return began, ended
