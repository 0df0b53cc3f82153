"""Into which cache weights are best fetched ahead: whole steps of the engine, timed both ways in turns.

Where memory bounds a step, a CPU keeps more of it busy by way of the nearest cache or of the second, and which, neither
its name nor its instructions say for certain. It changes no bit. Tiles are not timed: a tile's sums fill the registers
of its instruction set, and smaller ones only read more. Nor are threads: other processes come and go, so a running
program asks again all the time how many are fastest (`native/core/pace.h`).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from allotrope import native
from allotrope.artifact.engine import Engine
from allotrope.artifact.manifest import FETCH
from allotrope.build.options import BuildOptions
from allotrope.build.steps import PAGE_SIZE, step
from allotrope.hw.device import Device
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.step import WANT_LAST, StepInput

NEAR, FAR = FETCH
_ROUNDS = {"full": 15, "fast": 5}
_BUDGET_S = {"full": 2.0, "fast": 0.4}  # after which no further round begins, if there were three
_SETTLING_S = {"full": 5.0, "fast": 0.0}  # that weights may take to move to where a running engine reads them
_TURN_S = 0.01
_LEAST_ROUNDS = 3
_LEAST_GAIN = 0.02  # below that the guess for such CPUs stands, so that two builds agree


def timed(engine: Engine, device: Device, options: BuildOptions) -> dict[str, Any]:
    """The choice, and the seconds of a step that it rests on."""
    plan, random = engine.manifest.plan, np.random.default_rng(options.seed)
    first = min(PAGE_SIZE, plan.max_len - 1)
    asked = step(plan, random, [first], [1], 2, want=np.full(1, WANT_LAST, np.uint8), sample=np.ones(1, np.bool_))
    executor = NativeExecutor(
        engine, device=device, pages=2, page_size=PAGE_SIZE, max_tokens=1, threads=options.threads or None
    )
    try:
        return _timed(executor, asked, options.tune)
    finally:
        executor.close()


def _timed(executor: NativeExecutor, asked: StepInput, effort: str) -> dict[str, Any]:
    began = time.perf_counter()
    each = _seconds(executor, asked, 1)
    while executor.settling and time.perf_counter() - began < _SETTLING_S[effort]:
        each = _seconds(executor, asked, 1)
    steps = max(1, min(1000, int(_TURN_S / max(each, 1e-9))))
    took: dict[str, list[float]] = {NEAR: [], FAR: []}
    began = time.perf_counter()
    for round_ in range(_ROUNDS[effort]):
        for way in (NEAR, FAR) if round_ % 2 else (FAR, NEAR):
            executor.fetch(way == NEAR)
            took[way].append(_seconds(executor, asked, steps))
        if len(took[NEAR]) >= _LEAST_ROUNDS and time.perf_counter() - began > _BUDGET_S[effort]:
            break
    medians = {way: statistics.median(seconds) for way, seconds in took.items()}
    return {
        "choice": choice(took[NEAR], took[FAR], native.find().core.fetches_near),
        **medians,
        "rounds": len(took[FAR]),
    }


def choice(near: list[float], far: list[float], guess: bool) -> str:
    """The faster way, if it is faster than the guess by more than turns differ by chance."""
    gains = sorted((a / b if guess else b / a) - 1.0 for a, b in zip(near, far, strict=True))
    quarter = len(gains) // 4
    noise = (gains[-1 - quarter] - gains[quarter]) / 2.0
    other = statistics.median(gains) > max(_LEAST_GAIN, noise)
    return NEAR if guess != other else FAR


def _seconds(executor: NativeExecutor, asked: StepInput, steps: int) -> float:
    """Of a step, the mean of so many."""
    began = time.perf_counter()
    for _ in range(steps):
        executor.run(asked)
    return (time.perf_counter() - began) / steps
