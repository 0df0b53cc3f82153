"""Into which cache weights are fetched ahead: what the builder measures decides, and no bit depends on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.artifact import layout, manifest
from allotrope.artifact.engine import open_engine
from allotrope.build import build, fetching
from allotrope.build.options import BuildOptions
from allotrope.errors import EngineError
from tests.engine_kit import describe
from tests.engines import CPU, LLAMA, plan_of
from tests.native_kit import native_engine, native_executor, natively, needs_core
from tests.test_eager import one_step
from tests.tiny import tiny

CALM, SWINGING = 1e-3, 0.8


class Core:
    """A core that takes so much longer by way of the nearest cache, and now and then longer by chance."""

    def __init__(self, gain: float, guess: str, swing: float) -> None:
        self.fetches_near, self.fetched, self.told = guess == "near", guess == "near", list[bool]()
        self._gain, self._swing, self._random = gain, swing, np.random.default_rng(0)

    def fetch(self, near: bool) -> None:
        self.fetched = near
        self.told.append(near)

    def run(self, _: int, count: int) -> float:
        second = 1e-3 * (1.0 + self._swing * self._random.random())
        return count * (second * (1.0 + self._gain) if self.fetched else second)


@pytest.mark.parametrize(
    ("gain", "swing", "faster"),
    [(0.10, CALM, "far"), (-0.10, CALM, "near"), (0.01, CALM, None), (-0.01, CALM, None), (0.10, SWINGING, None)],
)
@pytest.mark.parametrize("guess", ["near", "far"])
def test_only_a_clear_gain_overrules_the_guess(guess: str, gain: float, swing: float, faster: str | None) -> None:
    core = Core(gain, guess, swing)
    found = fetching.compared(core.run, core, 9)
    assert found["choice"] == (faster or guess) and found["guess"] == guess
    assert found["rounds"] == 9 and core.told[:4] == [False, True, True, False]
    assert core.fetched == core.fetches_near, "what else is timed is timed as the guess has it"
    if swing == CALM:
        assert found["near"] / found["far"] - 1 == pytest.approx(gain, abs=1e-3)


@needs_core
def test_bits_are_the_same_either_way() -> None:
    found = []
    for near in (True, False):
        runner = native_executor(native_engine(LLAMA))
        runner._core.fetch(near)
        found.append(np.array(runner.run(one_step([5, 6, 7, 8, 9], 2)).logits))
        runner.close()
    assert np.array_equal(*found) and np.isfinite(found[0]).all()


@needs_core
def test_the_layer_that_reads_the_most_is_timed() -> None:
    plan = natively(plan_of(LLAMA))
    found = fetching.timed(plan, CPU, BuildOptions(tune="fast"))
    assert found is not None and found["near"] > 0 and found["far"] > 0 and found["rounds"] >= 5
    weights = {call.path: plan.weights[call.ins["weight"][2:]] for call in plan.calls if "weight" in call.ins}
    read = {path: math.prod(layout.packed_shape(weight)) for path, weight in weights.items()}
    per_kind: dict[str, int] = {}
    for path, size in read.items():
        kind = path.rpartition(".")[2]
        per_kind[kind] = per_kind.get(kind, 0) + size
    assert per_kind[found["path"].rpartition(".")[2]] == max(per_kind.values())
    assert fetching.timed(plan_of(LLAMA), CPU, BuildOptions(tune="fast")) is None, "these layers are not the core's"


@needs_core
@pytest.mark.parametrize("faster", ["near", "far"])
def test_the_engine_runs_as_the_builder_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    asked = {"executor": "native", "device": "cpu"}
    monkeypatch.setattr(fetching, "timed", lambda *_: {"choice": faster, "guess": "near"})
    built = build(str(tiny("llama", tmp_path / "model")), tmp_path / "engine", tune="fast", **asked)
    assert built.manifest.tuned == {"fetch": faster}
    assert built.manifest.evidence["tuning"]["fetch"]["choice"] == faster
    made, real = list[_Program](), native.find()
    monkeypatch.setattr(native, "find", lambda: replace(real, core=_Extension(real.core, made)))
    native_executor(open_engine(built.path)).close()
    assert [one.fetched for one in made] == [[faster == "near"]]


@needs_core
@pytest.mark.parametrize("options", [{"tune": "off"}, {"tune": "fast", "executor": "eager"}])
def test_where_nothing_is_timed_the_guess_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(fetching, "timed", lambda *_: pytest.fail("timed"))
    built = build(str(tiny("llama", tmp_path / "model")), tmp_path / "engine", device="cpu", **options)
    assert built.manifest.tuned == {} and built.manifest.evidence["tuning"]["fetch"] is None


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


@pytest.mark.parametrize("tuned", [{"fetch": "nowhere"}, {"fetch": None}, {"tiles": 8}, {"fetch": "far", "tiles": 8}])
def test_an_engine_that_is_tuned_in_ways_that_nobody_knows_is_refused(tmp_path: Path, tuned: dict[str, Any]) -> None:
    described = replace(describe(plan_of(LLAMA)), tuned=tuned)
    tmp_path.joinpath(manifest.FILE).write_bytes(described.to_bytes())
    with pytest.raises(EngineError, match="field 'tuned' has the wrong form"):
        manifest.read(tmp_path)
    tmp_path.joinpath(manifest.FILE).write_bytes(replace(described, tuned={"fetch": "far"}).to_bytes())
    assert manifest.read(tmp_path).tuned == {"fetch": "far"}
