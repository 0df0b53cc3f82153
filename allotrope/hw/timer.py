"""The one timer. Warms up, repeats until it has seen enough, and reports the median with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from allotrope.hw.capture import Graphs
from allotrope.hw.device import Device

Run = Callable[[int, int], float]
"""`run(first, count)` makes calls `first`, `first` + 1, … and gives the seconds that they took."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call. `spread` is half the distance between the quartiles: what counts as noise."""

    median: float
    spread: float
    samples: tuple[float, ...]


def time_calls(
    call: Callable[[int], object],
    device: Device,
    *,
    samples: int = 7,
    min_sample_s: float = 2e-3,
    budget_s: float = 0.5,
) -> Timing:
    """Time `call(i)`, i counting up so that the caller can rotate among inputs that defeat the caches."""
    clock = _Clock(device)
    run = partial(clock.run, call)
    return time_runs(run, samples=samples, min_sample_s=min_sample_s, budget_s=budget_s)


def time_runs(run: Run, *, samples: int = 7, min_sample_s: float = 2e-3, budget_s: float = 0.5) -> Timing:
    """Time calls that are made so many at once.

    One sample is as many calls as take `min_sample_s`; sampling stops after `samples`, or when
    `budget_s` is spent and three are there.
    """
    run(0, 1)
    index, each = 1, 0.0
    for _ in range(2):  # the second call no longer pays for one-time set-up; the third is the estimate
        each = run(index, 1)
        index += 1
    calls = max(1, min(10_000, int(min_sample_s / max(each, 1e-9))))
    seen: list[float] = []
    started = time.perf_counter()
    while len(seen) < samples and not (len(seen) >= 3 and time.perf_counter() - started > budget_s):
        seen.append(run(index, calls) / calls)
        index += calls
    return summarise(seen)


def in_graphs(call: Callable[[int], object], calls: int) -> Callable[[int], object]:
    """What replays a CUDA graph of so many calls, `call(0)`, `call(1)`, …"""

    def body() -> None:
        for i in range(calls):
            call(i)

    replay = Graphs().record(body)
    return lambda _: replay()


def summarise(seen: list[float]) -> Timing:
    """The median and spread of samples."""
    ordered = sorted(seen)
    if len(ordered) < 2:
        return Timing(ordered[0], 0.0, tuple(seen))
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Timing(statistics.median(ordered), (high - low) / 2, tuple(seen))


class _Clock:
    """Wall time on a CPU; events around the work on a GPU, where launching is not doing."""

    def __init__(self, device: Device) -> None:
        self._cuda = device.kind == "cuda"

    def run(self, call: Callable[[int], object], index: int, calls: int) -> float:
        if self._cuda:
            import torch

            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for i in range(index, index + calls):
                call(i)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3
        began = time.perf_counter()
        for i in range(index, index + calls):
            call(i)
        return time.perf_counter() - began
