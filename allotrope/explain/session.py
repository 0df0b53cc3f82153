"""An engine opened twice, with clocks and without, run in turns, and the run in the middle accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from allotrope import settings
from allotrope.artifact import manifest
from allotrope.errors import UsageError
from allotrope.explain.account import account
from allotrope.explain.drive import PAIRS, Asked, runs
from allotrope.explain.explanation import Explained
from allotrope.explain.floors import Floors
from allotrope.explain.notes import Notes
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.runtime.opening import open_folder
from allotrope.runtime.options import RuntimeOptions

__all__ = ["PAIRS", "Asked", "Setting", "check", "explain"]


@dataclass(frozen=True)
class Setting:
    """Where an explanation is made: how the engine is run, on what, and what that could do at best."""

    options: RuntimeOptions
    device: Device
    ceilings: Ceilings | None
    seed: int = 0
    traced: bool = False  # a timeline will be drawn: pages are counted, and NVTX hears what is done when


def check(folder: Path, asked: Asked) -> None:
    """A UsageError unless the engine can be asked for that."""
    limits = manifest.read(folder).limits
    tokens = asked.into + asked.output
    if tokens > limits["max_len"]:
        problem = f"--io {asked.into},{asked.output} needs {tokens} tokens; the engine's limit is {limits['max_len']}"
        raise UsageError(problem, remedy="ask for fewer, or rebuild it with a larger --max-len")
    if asked.batch > limits["max_batch"]:
        problem = f"--batch is {asked.batch}; the engine's limit is {limits['max_batch']}"
        raise UsageError(problem, remedy="ask for fewer, or rebuild it with a larger --max-batch")


def explain(folder: Path, asked: Asked, setting: Setting, advance: Callable[[], object] = lambda: None) -> Explained:
    """Run and account. `advance` is called after each pair of runs."""
    check(folder, asked)
    options, ranges = setting.options, None
    if setting.traced and setting.device.kind == "cuda":
        import torch

        ranges = torch.cuda.nvtx
    timed = open_folder(folder, options, timed=True)
    try:
        plain = open_folder(folder, options)
        try:
            found = runs(timed, plain, asked, options, setting.seed, advance, partial(Notes, ranges, setting.traced))
        finally:
            plain.executor.close()
    finally:
        timed.executor.close()
    described = timed.engine.manifest
    ceilings = setting.ceilings
    floors = Floors(described.plan, ceilings or Ceilings(1.0, {described.plan.dtype: 1.0}, {}, 1, ""))
    accounted = account(found.middle, described.plan, floors, ceilings is not None, setting.device.kind == "cuda")
    executor = type(timed.executor).__name__.removesuffix("Executor").lower()
    return Explained(described, asked, accounted, found, ceilings, executor, options.threads or settings.threads())
