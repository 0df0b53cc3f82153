"""What is asked of an engine, and when: so many requests of drawn lengths, or a recorded trace made to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.bench import trace
from allotrope.bench.lengths import Lengths
from allotrope.errors import UsageError
from allotrope.runtime.sampling_params import SamplingParams


@dataclass(frozen=True)
class Job:
    """One request of a load."""

    arrival: float  # seconds after the load begins
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int = 0  # under the policy of that name, lower comes first


URGENT = -1


def exactly(output: int) -> SamplingParams:
    """So many tokens, whatever the model says: greedy, and ends of text ignored."""
    return SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True, seed=0)


@dataclass(frozen=True)
class Workload:
    """A load: its requests in order of arrival, and what it is, in plain values."""

    jobs: tuple[Job, ...]
    described: Mapping[str, Any]


def drawn(
    count: int, prompts: Lengths, outputs: Lengths, *, rate: float | None, max_len: int, vocab: int, seed: int
) -> Workload:
    """`count` requests, all at once or (`rate`) so many a second as a Poisson process has it."""
    longest = prompts.longest + outputs.longest
    if longest > max_len:
        raise UsageError(
            f"prompts and outputs need up to {longest} tokens together; the engine's limit is {max_len}",
            remedy="lower --prompt-lengths or --output-lengths",
        )
    random = np.random.default_rng([seed, 0])
    gaps = np.zeros(count) if rate is None else random.exponential(1 / rate, count)
    arrivals = np.cumsum(gaps) - gaps[:1]
    # A lognormal prompt leaves room for the other's longest; then the output takes what there is.
    room = max_len - (outputs.longest if outputs.high is not None else 1)
    lengths = []
    for _ in range(count):
        prompt = prompts.draw(random, room)
        lengths.append((prompt, outputs.draw(random, max_len - prompt)))
    described = {"prompts": prompts.to_json(), "outputs": outputs.to_json(), "rate": rate, "seed": seed}
    return Workload(_jobs(arrivals.tolist(), lengths, vocab, seed), described)


def recorded(
    path: Path, count: int | None, *, speedup: float, scale: float | None, max_len: int, vocab: int, seed: int
) -> Workload:
    """A trace's first `count` requests, `speedup` times as fast, lengths times `scale` (None: so that all fit)."""
    rows = trace.read(path, count)
    longest = max(row.prompt + row.output for row in rows)
    factor = min(1.0, max_len / longest) if scale is None else scale
    lengths = [_scaled(row, factor, max_len if scale is None else None) for row in rows]
    beyond = max(prompt + output for prompt, output in lengths)
    if beyond > max_len:
        raise UsageError(
            f"the trace's longest request has {beyond} tokens at --scale {scale:g}; the engine's limit is {max_len}",
            where=str(path),
            remedy=f"leave --scale out (then it is {max_len / longest:.3g})",
        )
    described = {"trace": path.name, "speedup": speedup, "scale": factor, "seed": seed}
    return Workload(_jobs([row.at / speedup for row in rows], lengths, vocab, seed), described)


def _scaled(row: trace.Recorded, factor: float, most: int | None) -> tuple[int, int]:
    """Prompt and output length, at least one token each; rounding must not push them over `most`."""
    prompt, output = (max(1, round(length * factor)) for length in (row.prompt, row.output))
    if most is not None and prompt + output > most:
        output = min(output, most - 1)
        prompt = min(prompt, most - output)
    return prompt, output


def with_urgent(workload: Workload, share: float, seed: int) -> Workload:
    """The same load, in which about this share of the requests goes before the others."""
    drawn = np.random.default_rng([seed, 2]).random(len(workload.jobs))
    jobs = tuple(
        replace(job, priority=URGENT if draw < share else 0)
        for job, draw in zip(workload.jobs, drawn.tolist(), strict=True)
    )
    return Workload(jobs, {**workload.described, "urgent": share})


def _jobs(arrivals: list[float], lengths: list[tuple[int, int]], vocab: int, seed: int) -> tuple[Job, ...]:
    """Prompts of random tokens: nobody shares a prefix, and what they say changes no time."""
    random = np.random.default_rng([seed, 1])
    return tuple(
        Job(arrival, tuple(random.integers(0, vocab, prompt).tolist()), exactly(output))
        for arrival, (prompt, output) in zip(arrivals, lengths, strict=True)
    )
