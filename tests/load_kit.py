"""What the tests of loads share: an executor that computes nothing, and engines with room for a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.artifact.engine import open_engine
from allotrope.bench.drive import drive
from allotrope.bench.workload import Job, exactly
from allotrope.runtime.buffers import page_bytes
from allotrope.runtime.loop import Loop
from allotrope.runtime.opening import Opened, open_folder
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.request import Request
from allotrope.runtime.step import Candidates, StepInput, StepOutput


@dataclass(frozen=True)
class Done:
    """A step that had been computed when `launch` returned."""

    output: StepOutput
    ready: bool = True

    def wait(self) -> StepOutput:
        return self.output


@dataclass
class Fake:
    """Draws position mod 97 for every row that draws, whatever its tokens are."""

    on_launch: Callable[[StepInput], object] = lambda step: None
    busy_s: float = 0.0
    idle_s: float = 0.0

    can_repeat = False

    def launch(self, step: StepInput) -> Done:
        self.on_launch(step)
        ends = step.first + np.diff(step.starts)
        tokens = np.where(step.sample, ends % 97, -1).astype(np.int32)
        logprobs = np.where(step.sample, -ends.astype(np.float32), np.nan).astype(np.float32)
        rows = step.rows
        return Done(
            StepOutput(tokens, logprobs, ((),) * rows, np.ones(rows, bool), busy_s=self.busy_s, idle_s=self.idle_s)
        )


@contextmanager
def opened(engine: Path, pages: int | None = None, **options: Any) -> Iterator[Opened]:
    """An engine, ready to run; `pages` is the size of its KV pool."""
    if pages is not None:
        page = page_bytes(open_engine(engine).manifest.plan, options.get("page_size", RuntimeOptions.page_size))
        options["kv_memory"] = pages * page
    found = open_folder(engine, RuntimeOptions(**{"threads": 1, **options}))
    try:
        yield found
    finally:
        found.executor.close()


def exact_job(arrival: float, prompt: int, output: int, priority: int = 0) -> Job:
    """A job of exactly so many tokens in and out."""
    return Job(arrival, tuple(range(1, prompt + 1)), exactly(output), priority)


def mixed(job: Job, i: int) -> Job:
    """The same job, decoded in one of several ways; every answer reports log-probabilities."""
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 1.0, "top_k": 40},
        {"logprobs": 3},
        {"temperature": 0.8, "top_p": 0.9, "min_p": 0.01, "logprobs": 1},
        {"repetition_penalty": 1.3},  # its next step needs the last token on the host
        {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {7: 2.0}},
    )
    return replace(job, params=replace(job.params, seed=i, **ways[i % len(ways)]))


Bits = tuple[tuple[int, ...], bytes, tuple[Candidates, ...]]


def bits(request: Request) -> Bits:
    """What a request got: its tokens, the bits of their log-probabilities, and what was likeliest beside them."""
    return (
        tuple(request.output),
        np.array(request.logprobs, np.float32).tobytes(),
        tuple(request.candidates),
    )


def answers(loop: Loop, jobs: Sequence[Job]) -> list[Bits]:
    """Put a load on the loop; every request must end with the length it asked for."""
    driven = drive(loop, jobs)
    assert {one.finish_reason for one in driven.times} == {"length"}
    found = [bits(generation.request) for generation in driven.generations]
    assert [len(tokens) for tokens, _, _ in found] == [job.params.max_tokens for job in jobs]
    return found


def alone(loop: Loop, jobs: Sequence[Job]) -> list[Bits]:
    """What each request gets when there is no other."""
    return [found for job in jobs for found in answers(loop, [replace(job, arrival=0.0)])]


def write_trace(path: Path, *rows: str, header: str = "TIMESTAMP,ContextTokens,GeneratedTokens") -> Path:
    path.write_bytes("\r\n".join([header, *rows]).encode())
    return path


ROWS = (
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.6805900,396,109",
    "2023-11-16 18:15:48.1805900,91,1",
)
