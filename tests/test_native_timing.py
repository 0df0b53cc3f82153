"""How the builder times the core's calls: many in one go, as a step makes them, with its threads awake."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.build.options import BuildOptions
from allotrope.build.stage import Stage
from allotrope.build.tasks import Task
from allotrope.build.timings import Timings
from allotrope.build.tune import Tuner
from allotrope.hw.timer import Run
from allotrope.ops import registry
from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic
from allotrope.runtime.step import WANT_LAST
from tests.engines import CPU
from tests.native_kit import native_executor, needs_core
from tests.test_eager import one_step
from tools.train.spec import MODELS

pytestmark = needs_core


def native_tactic(op: str) -> NativeTactic:
    tactic = registry.tactic(op, "native")
    assert isinstance(tactic, NativeTactic)
    return tactic


def test_each_call_of_a_series_is_a_step_s_on_a_set_of_its_own() -> None:
    """Sums that would differ: each call adds its own set to what the one before left."""
    x, grown = torch.randn(1, 32), torch.zeros(1, 32)
    steps = [torch.full((1, 32), 10.0**power) for power in range(3)]
    series = native_tactic("add").series({"out": grown}, [{"a": grown, "b": step} for step in steps], {}, None)
    assert 0 < series(0, 4) < 1  # the fourth is the first again
    assert grown[0, 0] == 112
    assert 0 < series(2, 2) < 1
    assert grown[0, 0] == 213
    assert series(0, 0) >= 0 and (grown == 213).all()
    native_tactic("add").run({"out": grown}, {"a": grown, "b": x}, {}, None)
    assert torch.equal(grown, 213 + x)


def test_the_builder_times_the_cores_calls_as_a_series(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Planted: 3 ms before anything runs, as if threads were woken. No call's time has them."""
    series = Stage.series

    def late(stage: Stage, tactic: NativeTactic) -> Run:
        run = series(stage, tactic)

        def waking(first: int, count: int) -> float:
            time.sleep(0.003)
            return run(first, count)

        return waking

    monkeypatch.setattr(Stage, "series", late)
    tuner = Tuner(CPU, BuildOptions(tune="fast", executor="native", without=("torch",)), Timings(tmp_path / "none"))
    problem = Problem("add", {"rows": 1, "width": 32}, {}, "fp32", frozenset())
    task = Task("add", ((None, 1),), (problem,), ("blocks.0.add",), {})
    (trial,) = (trial for trial in tuner.trials(task)[0] if trial.tactic == "native")
    assert trial.measured is not None and 0 < trial.measured.seconds < 0.003
    (kept,) = tuner.timings.known
    assert kept.endswith(" fast in a step")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_timed_calls_add_up_to_a_step(threads: int, tmp_path: Path) -> None:
    """Within a factor: a step's own clock runs beside whatever else the machine does."""
    built = build(str(MODELS / "pycoder"), tmp_path / "engine", device="cpu", tune="fast", threads=threads)
    choices = built.manifest.evidence["choices"]
    timed = {path: choice["buckets"][0]["seconds"] for choice in choices for path in choice["paths"]}
    runner = native_executor(
        open_engine(built.path), threads=threads, poison=False, timed=True, page_size=16, max_tokens=256
    )
    whole = one_step([5] * 256, WANT_LAST, 16)
    runner.run(whole)
    step = replace(one_step([5], WANT_LAST, 16), first=np.array([255], np.int32), pages=whole.pages)
    outputs = [runner.run(step) for _ in range(50)]
    took = np.min([output.timed.seconds()[0] for output in outputs if output.timed is not None], axis=0)
    expected = np.array([timed[call.path] for call in runner.plan.calls])
    assert 1 / 3 < expected.sum() / took.sum() < 3
