"""The comparison itself: everybody in a process of their own, taking turns cell by cell and repeat by repeat.

A turn is: wake up on a few tokens, since another worker's weights are in the caches; the prompts with one token asked
for; other prompts of the same lengths with all. Everybody gets the same prompts in a turn, drawn from the seed, and no
prompt comes twice. Between turns a worker is stopped. The order goes round, so that nobody always comes after the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotrope.bench.agreement import agreement
from allotrope.bench.grid import Cell, Sample
from allotrope.bench.journal import Journal
from allotrope.bench.runners import Runner
from allotrope.bench.workers import WorkerFailed

_SPARE = 2  # sets of prompts besides the first, for turns that were disturbed
_SHORT = 8  # tokens to wake up on
_JUDGED = 16  # texts that are compared in a cell
_FAILURES = 2  # a peer that has failed so often is not started again


@dataclass(frozen=True)
class Asked:
    """How cells are measured."""

    cells: Sequence[Cell]
    repeat: int
    warmup: int
    beams: int
    seed: int
    vocab: int
    precision: str  # bits of the peers' weights
    opening: Mapping[str, Any]  # what workers are opened with
    patient: bool = True  # whether a disturbed go is repeated

    @property
    def turns(self) -> int:
        """Of one runner."""
        return len(self.cells) * self.repeat


class Turns:
    """Runs the cells; samples and first answers go to the journal."""

    def __init__(
        self, asked: Asked, journal: Journal, said: Callable[[str], None], done: Callable[[], object] = lambda: None
    ) -> None:
        self._asked, self._journal, self._said, self._done = asked, journal, said, done
        self.agreements: dict[tuple[Cell, str], dict[str, Any]] = {}
        self._group, self._number = "", 0
        self.companies: set[str] = set()  # the groups that were run
        self.groups: dict[str, str] = {}  # in which a peer takes part; the engine is in all
        self.reasons: dict[tuple[Cell, str], str] = {}  # why a runner has no figures in a cell

    def run(self, ours: Runner, peers: Sequence[Runner], group: int = 0) -> None:
        """All cells with these peers, which are opened and closed here; the engine stays open, and has a turn beside
        everybody in every group."""
        asked, self._number = self._asked, group
        try:
            for runner in peers:
                runner.try_open(asked.opening)
                if runner.reason is not None:
                    self._said(f"{runner.name}: {runner.reason}")
            there = [runner.name for runner in peers if runner.reason is None]
            self._group = " ".join(sorted(there))  # in other company, after a stop, all turns are taken anew
            self.companies.add(self._group)
            self.groups |= dict.fromkeys(there, self._group)
            for cell in asked.cells:
                everybody = [ours, *peers]
                for repeat in range(asked.repeat):
                    for runner in _rotated(everybody, repeat):
                        self._turn(runner, cell, repeat)
                        self._done()
                for runner in peers:
                    self._judge(ours, runner, cell)
        finally:
            for runner in peers:
                runner.close()

    def _turn(self, runner: Runner, cell: Cell, repeat: int) -> None:
        taken = len(self._journal.samples(cell, runner.name, self._group))
        if taken > repeat or (cell, runner.name) in self.reasons:
            return
        try:
            sample, tokens = self._sample(runner, cell, repeat)
        except WorkerFailed as error:
            if runner.peer is None:
                raise
            self._failed(runner, cell, str(error))
            return
        self._journal.add(cell, runner.name, sample, tokens if repeat == 0 else None)

    def _sample(self, runner: Runner, cell: Cell, repeat: int) -> tuple[Sample, list[list[int]]]:
        worker = runner.worker
        if worker is None:
            raise WorkerFailed(runner.reason or f"{runner.name} is not running")
        asked = self._asked
        if runner.peer is None or not runner.peer.variant:
            worker.ask("warm", prompt=self._prompts(cell, repeat, 2 + 2 * _SPARE + 2, 1, _SHORT)[0])
        warm = 0 if self._journal.samples(cell, runner.name) else asked.warmup
        first = self._run(runner, cell, repeat, 0, 1, warm)
        whole = self._run(runner, cell, repeat, 1, cell.output, warm) if cell.output > 1 else first
        peak = max(one["memory"].get("device") or one["memory"]["peak"] for one in (first, whole))
        foreign = max(first["foreign"], whole["foreign"])
        sample = Sample(first["seconds"], whole["seconds"], foreign, peak, whole["read_bytes_per_s"], self._group)
        return sample, whole["tokens"]

    def _run(self, runner: Runner, cell: Cell, repeat: int, part: int, count: int, warm: int) -> dict[str, Any]:
        sets = [self._prompts(cell, repeat, part + 2 * spare) for spare in range(1 + _SPARE)]
        if runner.worker is None:
            raise WorkerFailed(f"{runner.name} is not running")
        asked = self._asked
        return runner.worker.ask("run", prompts=sets, count=count, beams=asked.beams, warm=warm, patient=asked.patient)

    def _prompts(
        self, cell: Cell, repeat: int, part: int, batch: int | None = None, length: int | None = None
    ) -> list[list[int]]:
        """Random tokens, the same for everybody."""
        asked = self._asked
        drawn_for = (cell.batch, cell.input, cell.output, self._number, repeat, part)
        random = np.random.default_rng([asked.seed, *drawn_for])
        least = min(3, asked.vocab - 1)  # what comes before are the ends and beginnings of texts, most often
        drawn = random.integers(least, asked.vocab, (batch or cell.batch, length or cell.input))
        return [[int(token) for token in row] for row in drawn]

    def _judge(self, ours: Runner, runner: Runner, cell: Cell) -> None:
        """Compare the first turn's answers; whoever has left has nothing more to say."""
        asked = self._asked
        own, other = (self._journal.answer(cell, one.name, self._group) for one in (ours, runner))
        worker = ours.worker
        if own is None or other is None or worker is None:
            return
        prompts = self._prompts(cell, 0, 1 if cell.output > 1 else 0)[:_JUDGED]

        def score(texts: list[list[int]]) -> list[dict[str, float]]:
            found: list[dict[str, float]] = worker.ask("scores", prompts=texts)["scores"]
            return found

        found = agreement(prompts, own[:_JUDGED], other[:_JUDGED], score, asked.precision)
        if asked.beams > 1:  # the engine's next token says nothing about a search's best text
            found["different"] = False
        self.agreements[cell, runner.name] = found

    def _failed(self, runner: Runner, cell: Cell, why: str) -> None:
        """A peer that broke down leaves this cell, and is started once more for the next."""
        self.reasons[cell, runner.name] = why
        if runner.worker is None:
            return  # it has been absent from the start
        self._said(f"{runner.name} stopped at {cell}: {why}")
        runner.worker.kill()
        runner.worker, runner.failures = None, runner.failures + 1
        if runner.failures < _FAILURES:
            runner.try_open(self._asked.opening)
        else:
            runner.reason = why


def _rotated(everybody: Sequence[Runner], by: int) -> Iterator[Runner]:
    for i in range(len(everybody)):
        yield everybody[(i + by) % len(everybody)]
