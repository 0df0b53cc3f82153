"""How fast variants are: measured in rounds, each variant once in a round and in another order each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.artifact import manifest
from allotrope.bench.drive import drive
from allotrope.bench.summary import percentile
from allotrope.bench.workload import Job, exactly
from allotrope.build.memory import Peak
from allotrope.errors import AllotropeError, NumericalError
from allotrope.runtime.buffers import available_bytes, page_bytes
from allotrope.runtime.opening import Opened, open_folder
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.weights import weight_bytes

RAISED = (AllotropeError, MemoryError, OSError, RuntimeError)  # what a variant may fail with; torch's is the last
_SHARE = 0.4  # of the free memory that variants may hold while others are measured
_LEAST, _ENOUGH, MOST = 3, 5, 7  # rounds, where nobody says how many: of fewer than five, little shows
_AGREES = 0.01  # how far the middle half of everybody's samples may spread for five rounds to be enough


@dataclass(frozen=True)
class Cell:
    """So many requests at once, so many tokens in and out."""

    batch: int
    input: int
    output: int

    def __str__(self) -> str:
        return f"{self.batch} × {self.input}+{self.output}"


@dataclass(frozen=True)
class Sample:
    """One cell, once, in seconds: until every request had all its tokens, and until all had one where one was asked."""

    latency: float
    prefill: float


@dataclass(eq=False)
class Runner:
    """A variant that is measured: its engine, how it is run, and what was seen."""

    name: str
    folder: Path
    options: RuntimeOptions
    samples: dict[Cell, list[Sample]] = field(default_factory=dict)
    tokens: dict[tuple[Cell, int], list[list[int]]] = field(default_factory=dict)  # by cell and round
    peak_bytes: int = 0
    weights_bytes: int = 0
    token_bytes: int = 0
    refused: dict[Cell, str] = field(default_factory=dict)
    failed: str | None = None


@dataclass
class Rounds:
    """Measures runners. Engines stay open between rounds as long as they fit."""

    runners: Sequence[Runner]
    cells: Sequence[Cell]
    seed: int
    said: Callable[[str, str], None]  # a runner's name, and why it failed
    _open: dict[str, Opened] = field(default_factory=dict)
    _budget: int | None = None

    def run(self, wanted: int | None, until: float, advance: Callable[[], None]) -> int:
        """Round after round: `wanted` ones, or up to seven that end before `until`, three at the least.

        Five are enough where everybody's samples agree.
        """
        for runner in self._live():
            self._first(runner)
            advance()
        done, began = 0, time.perf_counter()
        while self._live() and (done < wanted if wanted else self._goes_on(done, began, until)):
            order = np.random.default_rng([self.seed, done]).permutation(len(self.runners))
            for runner in (self.runners[place] for place in order):
                if runner.failed is None:
                    self._visit(runner, done)
                    advance()
            done += 1
        return done

    def close(self) -> None:
        """Let go of every engine."""
        for opened in self._open.values():
            opened.executor.close()
        self._open.clear()

    def _goes_on(self, done: int, began: float, until: float) -> bool:
        if done < _LEAST:
            return True
        now = time.perf_counter()
        fits = now + (now - began) / done < until
        return fits and (done < _ENOUGH or (done < MOST and not self._agreed()))

    def _agreed(self) -> bool:
        """Whether nobody's samples spread."""
        return all(
            percentile(seen, 0.75) - percentile(seen, 0.25) < _AGREES * percentile(seen, 0.5)
            for runner in self._live()
            for seen in ([one.latency for one in samples] for samples in runner.samples.values())
        )

    def _live(self) -> list[Runner]:
        return [runner for runner in self.runners if runner.failed is None]

    def _first(self, runner: Runner) -> None:
        """Open it, warm it up, and see what memory that takes."""
        peak = _peak(runner)
        try:
            opened = self._opened(runner)
            plan = opened.engine.manifest.plan
            runner.weights_bytes, runner.token_bytes = weight_bytes(plan), page_bytes(plan, 1)
            for cell in self.cells:
                if cell.input + cell.output > opened.limits.max_len:
                    runner.refused[cell] = (
                        f"{cell.input + cell.output} tokens; the engine's limit is {opened.limits.max_len}"
                    )
                    continue
                self._cell(opened, cell, -1)
        except RAISED as error:
            self._fail(runner, error)
            return
        runner.peak_bytes = peak()

    def _visit(self, runner: Runner, number: int) -> None:
        try:
            fresh = runner.name not in self._open
            opened = self._opened(runner)
            for place, cell in enumerate(self.cells):
                if cell in runner.refused:
                    continue
                if fresh:
                    self._cell(opened, cell, -1 - place)
                sample, tokens = self._cell(opened, cell, number)
                runner.samples.setdefault(cell, []).append(sample)
                runner.tokens[cell, number] = tokens
        except RAISED as error:
            self._fail(runner, error)

    def _fail(self, runner: Runner, error: BaseException) -> None:
        runner.failed = " ".join(str(error).split())[:300] or type(error).__name__
        opened = self._open.pop(runner.name, None)
        if opened is not None:
            opened.executor.close()
        self.said(runner.name, runner.failed)

    def _opened(self, runner: Runner) -> Opened:
        """The runner's engine. Where it would not fit beside the others, these are closed first."""
        if runner.name in self._open:
            return self._open[runner.name]
        if self._open and not self._fits():
            self.close()
        opened = open_folder(runner.folder, runner.options)
        self._open[runner.name] = opened
        return opened

    def _fits(self) -> bool:
        """Whether another engine as large as the largest that is open may be opened beside them."""
        device = next(iter(self._open.values())).engine.manifest.device["kind"]
        free = available_bytes(device)
        if self._budget is None:
            self._budget = int(_SHARE * free)
        sizes = [_size(opened) for opened in self._open.values()]
        return sum(sizes) + max(sizes) <= self._budget and 2 * max(sizes) <= free

    def _cell(self, opened: Opened, cell: Cell, number: int) -> tuple[Sample, list[list[int]]]:
        """One cell on prompts of its own, alike for every variant: first with one token asked for, then with all."""
        source = np.random.default_rng([self.seed, number + 1_000_000, *(cell.batch, cell.input, cell.output)])

        def jobs(output: int) -> list[Job]:
            drawn = source.integers(0, opened.limits.vocab, (cell.batch, cell.input))
            return [Job(0.0, tuple(prompt), exactly(output)) for prompt in drawn.tolist()]

        prefill = drive(opened.loop, jobs(1))
        whole = drive(opened.loop, jobs(cell.output))
        error = next((one.error for one in (*prefill.times, *whole.times) if one.error), None)
        if error:
            raise NumericalError(error)
        tokens = [one.request.tokens[one.request.prompt_len :] for one in whole.generations]
        return Sample(whole.seconds, prefill.seconds), tokens


def _peak(runner: Runner) -> Callable[[], int]:
    """What tells how much memory, of the device, was taken at the peak since now."""
    if manifest.read(runner.folder).device["kind"] != "cuda":
        return Peak().bytes
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: int(torch.cuda.max_memory_allocated()) - before


def _size(opened: Opened) -> int:
    plan, executor = opened.engine.manifest.plan, opened.executor
    return weight_bytes(plan) + executor.pages * page_bytes(plan, opened.loop.scheduler.page_size)


def same_tokens(one: Runner, other: Runner) -> float | None:
    """The share of tokens that are alike, up to each answer's first difference; None where nothing was said twice."""
    alike = whole = 0
    for key in one.tokens.keys() & other.tokens.keys():
        for left, right in zip(one.tokens[key], other.tokens[key], strict=True):
            differing = (place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
            alike += next(differing, len(left))
            whole += len(left)
    return alike / whole if whole else None


def raw(runners: Sequence[Runner]) -> list[Mapping[str, Any]]:
    """Every sample, in plain values."""
    return [
        {
            "name": runner.name,
            "batch": cell.batch,
            "input": cell.input,
            "output": cell.output,
            "latency_s": [one.latency for one in samples],
            "prefill_s": [one.prefill for one in samples],
        }
        for runner in runners
        for cell, samples in runner.samples.items()
    ]
