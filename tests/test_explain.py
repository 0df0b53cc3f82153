"""`allotrope explain`: all of a run's time, where it went; what is refused; what is kept."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.build import build
from allotrope.cli import main
from allotrope.explain import drive
from allotrope.explain.drive import Asked
from allotrope.explain.explanation import Explained
from allotrope.explain.session import Setting, explain
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.hw.peaks import Ceilings
from allotrope.ops import registry
from allotrope.runtime.options import RuntimeOptions
from allotrope.runtime.scheduler import Scheduler
from tests.engines import LLAMA, plan_of, random_weights, write
from tests.schemas import fits, fits_kept
from tools.train.spec import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")
CEILINGS = Ceilings(2e10, {"fp32": 1e11}, {}, 1, "2026-01-01T00:00:00Z", {str(2**21): 5e10, str(2**25): 2e10})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("explain") / "engine", plan_of(LLAMA), random_weights(LLAMA))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundled model, built; its evidence says that nothing was timed."""
    out = tmp_path_factory.mktemp("explain") / "gal"
    build(str(MODELS / "tinygal-draft"), out, device="cpu", tune="off", threads=1)
    return out


def found(folder: Path, asked: Asked, ceilings: Ceilings | None = CEILINGS, **options: Any) -> Explained:
    given = {"threads": 1, "max_num_seqs": 2 * asked.batch, "max_len": asked.into + asked.output, **options}
    return explain(folder, asked, Setting(RuntimeOptions(**given), detect("cpu"), ceilings))


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three pairs of runs say enough here; the ceilings that these tests keep are nobody else's."""
    monkeypatch.setattr(drive, "PAIRS", 3)
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path_factory.getbasetemp() / "explain-cache"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    assert peaks.keep(detect("cpu"), CEILINGS)
    code = main(["explain", *map(str, arguments), "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def sums(figures: dict[str, Any]) -> float:
    return float(sum(one["ms"] for one in figures["accounted"].values()) + sum(figures["gaps_ms"].values()))


def test_all_of_a_bundled_models_time_is_accounted_for(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, built, "--io", "40,12", "--json")
    assert code == 0 and len(out.splitlines()) == 1
    figures = json.loads(out)
    fits("explain", figures)
    assert figures["steps"] == {"context": 1, "decode": 11}
    assert figures["asked"] == {"batch": 1, "input": 40, "output": 12}
    assert sums(figures) == pytest.approx(figures["total_ms"])
    assert figures["t_ctx_ms"] + figures["t_gen_ms"] == pytest.approx(figures["total_ms"])
    assert abs(figures["unaccounted_share"]) <= 0.05
    ops = {one["op"] for one in figures["calls"]}
    assert set(figures["accounted"]) == ops
    assert sum(one["context_ms"] + one["decode_ms"] for one in figures["calls"]) == pytest.approx(
        sum(one["ms"] for one in figures["accounted"].values())
    )
    for one in figures["accounted"].values():
        assert one["floor_ms"] > 0 and one["share_of_limit"] == pytest.approx(one["floor_ms"] / one["ms"])
        assert one["flops_per_s"] / figures["ceilings"]["flops_per_s"] <= one["share_of_limit"] * (1 + 1e-9)
        assert {tactic["phase"] for tactic in one["tactics"]} == {"context", "decode"}
    assert "nothing was timed" in figures["accounted"]["linear"]["tactics"][0]["why"]
    assert fits_kept("explain", built) == figures
    kept = json.loads((built / "explain.json").read_text())
    assert kept["command"].startswith(f"allotrope explain {built} --io 40,12")
    assert len(kept["samples"]["plain_s"]) == len(kept["samples"]["timed"]) >= 3
    assert sum(one["busy_s"] for one in kept["samples"]["timed"][0]["steps"]) > 0


def test_for_people(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, built, "--io", "20,6", "--batch", 2, "--by", "call")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last names the file
    for words in (
        "2 answers of 6 tokens to 20 took",
        "Reading weights:",
        "of what the cache (",
        "Around the calls the host worked for",
        "Not accounted for:",
        "attn.qkv ×",
        "steps planned",
        "decode: ",
    ):
        assert words in out, words
    native = json.loads((built / "explain.json").read_text())["executor"] == "native"
    assert native == ("up to 32 share what the host does" in " ".join(out.split()))


def test_a_slow_call_and_a_slow_host_show_where_they_are(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: 2 ms in every rotary embedding, 3 ms in every plan; each shows in its own place, and only there."""
    plan_step, take = Scheduler.plan_step, registry.tactic

    def slow_tactic(op: str, name: str) -> Any:
        tactic: Any = take(op, name)

        def slow(*given: Any) -> Any:
            time.sleep(0.002)
            return tactic.run(*given)

        return replace(tactic, run=slow) if op == "rotary" else tactic

    def slow_plan(self: Scheduler, hold_s: float) -> Any:
        time.sleep(0.003)
        return plan_step(self, hold_s)

    monkeypatch.setattr(registry, "tactic", slow_tactic)
    monkeypatch.setattr(Scheduler, "plan_step", slow_plan)
    slowed = found(engine, Asked(2, 8, 5))
    figures = slowed.to_json()
    calls = sum(one.op == "rotary" for one in plan_of(LLAMA).calls)
    assert figures["steps"] == {"context": 1, "decode": 4}
    assert 2.0 * calls * 5 <= figures["accounted"]["rotary"]["ms"]
    assert figures["gaps_ms"]["planning"] >= 3.0 * 5
    assert next(iter(figures["accounted"])) == "rotary"
    gaps = {name: took for name, took in figures["gaps_ms"].items() if name != "planning"}
    assert max(gaps.values()) < figures["gaps_ms"]["planning"]
    assert figures["calls"][[one["op"] for one in figures["calls"]].index("rotary")]["step_ms"] >= 2.0
    assert sums(figures) == pytest.approx(figures["total_ms"])
    assert abs(figures["unaccounted_share"]) <= 0.05


def test_without_ceilings_nothing_is_said_of_a_limit(engine: Path) -> None:
    from allotrope.explain import words

    one = found(engine, Asked(1, 4, 3), None)
    figures = one.to_json() | {"words": words.sentences(one), "predicted": [], "scored": None, "trace": None}
    fits("explain", figures)
    assert figures["share_of_limit"] is None
    assert figures["accounted"]["linear"]["floor_ms"] is None
    assert "run allotrope doctor --measure" in " ".join(figures["words"])


def test_a_prompt_in_several_steps_and_an_answer_of_one_token(engine: Path) -> None:
    chunked = found(engine, Asked(2, 16, 4), max_batched_tokens=8)
    assert chunked.account.context.steps >= 4
    assert chunked.account.context.tokens + chunked.account.decode.tokens == 2 * 4
    only = found(engine, Asked(1, 8, 1)).to_json()
    assert only["steps"] == {"context": 1, "decode": 0}
    assert only["calls"][0]["step_ms"] is None
    assert sums(only) == pytest.approx(only["total_ms"])


def test_floors_are_of_bytes_over_rates(engine: Path) -> None:
    """By hand, for a decoding step: each weight once at the cache's rate, keys and values up to each position."""
    one = found(engine, Asked(1, 8, 4))
    plan = plan_of(LLAMA)
    place, down = next((i, c) for i, c in enumerate(plan.calls) if c.path == "blocks.1.mlp.down")
    steps = one.account.decode.steps
    weight = 48 * 32 * 4
    assert down.op == "linear" and one.account.decode.cold[place] == steps * weight
    held = one.account.decode.held
    rate = CEILINGS.read_rate(held)
    assert rate > CEILINGS.read_bytes_per_s
    assert one.account.decode.floor_s is not None
    floor = one.account.decode.floor_s[place] / steps
    assert floor == pytest.approx(weight / rate + (48 + 32) * 4 / 5e10, rel=1e-6)
    attend = next(i for i, c in enumerate(plan.calls) if c.op == "attention")
    keys = 9 + 10 + 11
    assert one.account.decode.cold[attend] == 2 * keys * 2 * 8 * 4
    assert held > np.sum([np.prod(w.shape) for n, w in random_weights(LLAMA).items() if n.startswith("blocks")]) * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--io", "64"), "--io is '64'; give tokens in and out, such as 64,32"),
        (("--io", "0,8"), "--io is '0,8'"),
        (("--io", "60,8"), "--io 60,8 needs 68 tokens; the engine's limit is 64"),
        (("--batch", 0), "--batch is 0"),
        (("--io", "8,8", "--batch", 99), "--batch is 99; the engine's limit is"),
        (("--trace", "/nowhere/t.json"), "the trace cannot be written: its folder is not there"),
        (("--trace", "/"), "the trace cannot be written: it is a folder"),
    ],
)
def test_what_cannot_be_asked(
    engine: Path, arguments: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, engine, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_a_folder_that_cannot_be_written_keeps_nothing(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from allotrope.artifact import results

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write", full)
    code, out, _ = call(capsys, engine, "--io", "4,2")
    assert code == 0 and "(not kept:" in out and "name another folder with -o" in " ".join(out.split())
    monkeypatch.undo()
    code, _, _ = call(capsys, engine, "--io", "4,2", "--predict", "none", "-o", tmp_path / "kept")
    assert code == 0 and fits_kept("explain", tmp_path / "kept")["t_ctx_ms"] > 0
    code, _, err = call(capsys, engine, "--io", "4,2", "-o", "/dev/null/x")
    assert code == 2 and "/dev/null/x: cannot be written" in err
    assert torch.get_num_threads() == 1
