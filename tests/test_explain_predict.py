"""What a change would do: read from words, rehearsed, put together by rule, and scored against what it then does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.artifact import manifest
from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import UsageError
from allotrope.explain import drive
from allotrope.explain.changes import Change
from allotrope.explain.drive import Asked
from allotrope.explain.explanation import Explained
from allotrope.explain.formats import formats
from allotrope.explain.predict import predict
from allotrope.explain.rehearse import Rehearsal
from allotrope.explain.session import Setting, explain
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.ops import registry
from allotrope.runtime.options import RuntimeOptions
from tests.schemas import fits
from tests.test_explain import CEILINGS
from tools.train.spec import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")
SOURCE = str(MODELS / "tinychat")
ASKED = Asked(1, 24, 6)
NEAREST = {"method": "nearest"}


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three pairs of runs say enough here; the ceilings that these tests keep are nobody else's."""
    monkeypatch.setattr(drive, "PAIRS", 3)
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path_factory.getbasetemp() / "explain-cache"))


def made(out: Path, **options: Any) -> Path:
    build(SOURCE, out, device="cpu", executor="eager", tune="off", threads=1, **options)
    return out


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("predict") / "wide")


@pytest.fixture(scope="module")
def setting() -> Setting:
    options = RuntimeOptions(threads=1, max_num_seqs=2, max_len=30)
    return Setting(options, detect("cpu"), CEILINGS)


@pytest.fixture(scope="module")
def found(wide: Path, setting: Setting) -> Explained:
    return explain(wide, ASKED, setting)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    assert peaks.keep(detect("cpu"), CEILINGS)
    code = main(["explain", *map(str, arguments), "--io", "24,6", "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_changed_plan_is_the_one_that_a_build_makes(found: Explained, tmp_path: Path) -> None:
    """Calls, tactics, fusions and weights, without a weight being read."""
    for words, options in (
        ("int8", {"weights": "int8"}),
        ("int4,group-size=64,asymmetric=true", {"weights": "int4", "group_size": 64, "asymmetric": True, **NEAREST}),
        ("int8,activations=int8", {"weights": "int8", "activations": "int8", "calibration_tokens": 512}),
        ("bf16,kv=int8", {"weights": "bf16", "kv": "int8"}),
    ):
        built = manifest.read(made(tmp_path / words, **options)).plan
        outline = Change.parse(words).outline(found.manifest, "cpu")
        assert outline is not None
        changed, timed = outline.chosen(detect("cpu"), 1)
        assert (changed.calls, changed.weights, changed.cache) == (built.calls, built.weights, built.cache), words
        assert formats(changed) == formats(built) and timed == 0


def test_back_to_wide_and_to_another_dtype(found: Explained, tmp_path: Path) -> None:
    narrow = manifest.read(made(tmp_path / "narrow", weights="int4", kv="int8", **NEAREST))
    assert formats(narrow.plan)["weights"] == ["int4:32"]
    outline = Change.parse("wide,kv=wide").outline(narrow, "cpu")
    assert outline is not None and outline.options.method == "auto"
    assert formats(outline.plan) == formats(found.manifest.plan)
    outline = Change.parse("dtype=bf16").outline(found.manifest, "cpu")
    assert outline is not None
    wide = {"dtype": "bf16", "weights": ["bf16"], "activations": ["bf16"], "kv": "compute"}
    assert formats(outline.plan) == wide


def test_a_checkpoint_that_is_gone_or_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    build(str(source), tmp_path / "engine", device="cpu", tune="off", threads=1)
    shutil.rmtree(source)
    shutil.copytree(MODELS / "tinygpt2", source)
    code, _, err = call(capsys, tmp_path / "engine", "--predict", "int8")
    assert code == 2 and "that is another one by now; build the engine again" in err
    shutil.rmtree(source)
    code, _, err = call(capsys, tmp_path / "engine", "--predict", "int8")
    assert code == 2 and "that cannot be opened" in err and "add --predict none" in err
    code, out, _ = call(capsys, tmp_path / "engine")
    assert code == 0 and "Nothing is predicted:" in out
    assert call(capsys, tmp_path / "engine", "--predict", "batch=2")[0] == 0, "needs no checkpoint"


def test_overhead_and_pace_are_found_again(found: Explained, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a made-up world a call takes 7 µs and, if it is heavy, 1.5 times its rehearsal; the prediction is exact."""
    plan = found.manifest.plan

    def rehearsed(plan: Plan, one: Call, load: Load) -> float:
        cost = registry.contract(one.op).cost(problem(plan, one, load))
        return cost.bytes / 1e9 + 1e-7

    def seconds(self: Rehearsal, plan: Plan, one: Call, load: Load, held: float) -> float:
        return rehearsed(plan, one, load)

    def in_model(plan: Plan, context: bool, changed: bool = False) -> list[float]:
        rows = ASKED.into if context else 1
        middle = ASKED.into if context else ASKED.into + ASKED.output // 2
        times = []
        for one in plan.calls:
            last = one.path.startswith("head")
            took = rehearsed(plan, one, Load(1 if last else rows, 1, middle))
            times.append(7e-6 + took * (1.5 if one.op.startswith("linear") or one.op == "attention" else 1.0))
        return times

    monkeypatch.setattr(Rehearsal, "seconds", seconds)
    monkeypatch.setattr(Explained, "step_s", lambda self, context: np.array(in_model(plan, context)))
    got = predict(found, Change.parse("int8"), setting, Rehearsal(setting.device))
    assert got.overhead_us == pytest.approx(7.0)
    assert got.pace == pytest.approx(1.5)
    outline = Change.parse("int8").outline(found.manifest, "cpu")
    assert outline is not None
    changed, _ = outline.chosen(detect("cpu"), 1)
    coded = [place for place, one in enumerate(changed.calls) if one.op == "linear_codes"]
    decode = found.account.decode
    then = sum(in_model(changed, False)[i] for i in coded)
    expected = decode.wall_s - decode.call_s[coded].sum() + decode.steps * then
    assert got.t_gen_ms == pytest.approx(1e3 * expected)
    assert got.step_ms is not None and got.saved_step_ms is not None
    assert got.step_ms + got.saved_step_ms == pytest.approx(1e3 * decode.wall_s / decode.steps)
    context = found.account.context
    expected = context.wall_s - context.call_s[coded].sum() + sum(in_model(changed, True)[i] for i in coded)
    assert got.t_ctx_ms == pytest.approx(1e3 * expected)
    assert set(got.tactics) == {plan.calls[i].path.split(".", 2)[2] for i in coded}
    more = predict(found, Change.parse("batch=4"), setting, Rehearsal(setting.device))
    assert more.asked == {"batch": 4, "input": 24, "output": 6}
    assert "tokens/s instead of" in more.words


def test_predicted_before_scored_after(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, wide, "--predict", "int8", "--predict", "batch=2", "--json")
    before = json.loads(out)
    assert code == 0
    fits("explain", before)
    assert [one["change"] for one in before["predicted"]] == ["int8", "batch=2"]
    assert all(one["total_ms"] > 0 and one["words"] in before["words"] for one in before["predicted"])
    assert before["predicted"][0]["timed"] == 0, "the engine was built with --tune off, and so would this be"
    narrow = made(tmp_path / "int8", weights="int8")
    code, out, _ = call(capsys, narrow, "--against", wide / "explain.json", "--json")
    after = json.loads(out)
    assert code == 0
    fits("explain", after)
    scored = after["scored"]
    assert scored["change"] == "int8" and set(scored["rows"]) == {"total_ms", "t_ctx_ms", "t_gen_ms", "step_ms"}
    for name, row in scored["rows"].items():
        assert row["predicted"] == before["predicted"][0][name] and row["measured"] == after[name]
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert -0.7 < row["error"] < 3, "not even near"
    assert after["words"][-1].startswith("Predicted before as int8: a step")
    # its own last explanation is asked, too
    code, out, _ = call(capsys, wide, "--batch", 2, "--predict", "none", "--json")
    again = json.loads(out)
    assert again["scored"]["change"] == "batch=2" and again["predicted"] == []
    code, _, err = call(capsys, narrow, "--batch", 2, "--against", narrow / "explain.json")
    assert code == 2 and "no prediction there is of int8 weights at --io 24,6 --batch 2" in err
    other = json.loads((wide / "explain.json").read_text())
    other["environment"]["engine"]["source"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, _, err = call(capsys, narrow, "--against", tmp_path / "other.json")
    assert code == 2 and "this explanation is of another model" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--predict", "int7"), "'int7' is no change; give int8, int4"),
        (("--predict", "fp32"), "'fp32' is no change"),
        (("--predict", "wide"), "the engine is like that already"),
        (("--predict", "dtype=fp32"), "the engine is like that already"),
        (("--predict", "batch=1"), "that is what --batch says already"),
        (("--predict", "batch=0"), "'batch=0' is no change"),
        (("--predict", "int4,activations=fp8"), "--activations is fp8, and --weights is int4"),
        (("--predict", "int4,group_size=7"), "group size is 7; it must be one of"),
        (("--against", "/nowhere/explain.json"), "the explanation cannot be read: No such file"),
        (("--against", SOURCE + "/config.json"), "this is no explanation; give the explain.json"),
    ],
)
def test_what_cannot_be_predicted(
    wide: Path, arguments: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, wide, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_recorded_steps_are_not_predicted(found: Explained, setting: Setting) -> None:
    from dataclasses import replace

    context = replace(found.account.context, whole_s=1.0)
    recorded = replace(found, account=replace(found.account, context=context))
    with pytest.raises(UsageError, match="add --executor eager"):
        predict(recorded, Change.parse("int8"), setting, Rehearsal(setting.device))


def test_rehearsals_are_of_the_call_and_not_repeated(found: Explained) -> None:
    """A larger weight takes longer; what was timed is known."""
    plan, device = found.manifest.plan, detect("cpu")
    linears: Mapping[str, Call] = {one.path: one for one in plan.calls if one.op == "linear"}
    rehearsal = Rehearsal(device)
    small, large = linears["blocks.0.attn.o"], linears["head"]
    times = [rehearsal.seconds(plan, one, Load(1, 1, 8), 1e6) for one in (small, large)]
    assert 0 < times[0] < times[1]
    assert rehearsal.seconds(plan, small, Load(1, 1, 8), 1e6) == times[0]
    assert rehearsal.seconds(plan, linears["blocks.1.attn.o"], Load(1, 1, 8), 1e6) == times[0]
