"""Into which cache weights are fetched ahead: what the builder measures decides, and no bit depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.artifact import manifest
from allotrope.artifact.engine import open_engine
from allotrope.build import build, fetching
from allotrope.errors import EngineError
from allotrope.runtime.native import NativeExecutor
from tests.engine_kit import describe
from tests.engines import LLAMA, plan_of
from tests.native_kit import native_engine, native_executor, needs_core
from tests.test_eager import one_step
from tests.tiny import tiny

CALM, SWINGING = [0.0, 0.001, -0.001, 0.0005, -0.0005], [0.3, -0.3, 0.25, -0.2, 0.02]


@pytest.mark.parametrize("guess", [True, False])
@pytest.mark.parametrize(
    ("gain", "swing", "other"), [(0.10, CALM, True), (-0.10, CALM, False), (0.01, CALM, False), (0.10, SWINGING, False)]
)
def test_only_a_clear_gain_overrules_the_guess(guess: bool, gain: float, swing: list[float], other: bool) -> None:
    usual = [1.0 + one for one in swing]
    better = [1.0 / (1.0 + gain)] * len(swing)
    near, far = (usual, better) if guess else (better, usual)
    assert fetching.choice(near, far, guess) == ("near" if guess != other else "far")


@needs_core
def test_bits_are_the_same_either_way() -> None:
    found = []
    for near in (True, False):
        runner = native_executor(native_engine(LLAMA))
        runner.fetch(near)
        found.append(np.array(runner.run(one_step([5, 6, 7, 8, 9], 2)).logits))
        runner.close()
    assert np.array_equal(*found) and np.isfinite(found[0]).all()


@needs_core
@pytest.mark.parametrize("faster", ["near", "far"])
def test_the_builder_times_whole_steps_and_the_engine_runs_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    now, told = [0.0], list[bool]()
    fetch, run = NativeExecutor.fetch, NativeExecutor.run

    def noted(self: Any, near: bool) -> None:
        told.append(near)
        fetch(self, near)

    def paced(self: Any, step: Any) -> Any:
        slow = bool(told) and (told[-1] != (faster == "near"))
        now[0] += 0.004 if slow else 0.003
        return run(self, step)

    monkeypatch.setattr(NativeExecutor, "fetch", noted)
    monkeypatch.setattr(NativeExecutor, "run", paced)
    monkeypatch.setattr(fetching, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    built = build(str(tiny("llama", tmp_path / "model")), tmp_path / "engine", tune="fast", device="cpu")
    found = built.manifest.evidence["tuning"]["fetch"]
    assert found["choice"] == faster == built.manifest.tuned["fetch"] and found["rounds"] >= 3
    assert found[faster] == pytest.approx(0.003) and set(told) == {True, False}

    made, real = list[_Program](), native.find()
    monkeypatch.setattr(native, "find", lambda: replace(real, core=_Extension(real.core, made)))
    native_executor(open_engine(built.path)).close()
    assert [one.fetched for one in made] == [[faster == "near"]]


class _Extension:
    """Stands for the core's extension, whose programs note what they are told."""

    def __init__(self, core: Any, made: list[_Program]) -> None:
        self._core, self._made = core, made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def Program(self, *given: Any) -> _Program:
        self._made.append(_Program(self._core.Program(*given)))
        return self._made[-1]


class _Program:
    def __init__(self, program: Any) -> None:
        self._program, self.fetched = program, list[bool]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def fetch(self, near: bool) -> None:
        self.fetched.append(near)


def test_an_engine_that_names_another_cache_is_refused(tmp_path: Path) -> None:
    described = replace(describe(plan_of(LLAMA)), tuned={"fetch": "nowhere"})
    tmp_path.joinpath(manifest.FILE).write_bytes(described.to_bytes())
    with pytest.raises(EngineError, match="field 'tuned' has the wrong form"):
        manifest.read(tmp_path)
    tmp_path.joinpath(manifest.FILE).write_bytes(replace(described, tuned={"fetch": "far"}).to_bytes())
    assert manifest.read(tmp_path).tuned == {"fetch": "far"}
