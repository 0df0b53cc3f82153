"""What a change would do: read from words, rehearsed, put together by rule, and scored against what it then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.artifact import layout, manifest
from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import UsageError
from allotrope.explain import drive
from allotrope.explain import rehearse as dressing
from allotrope.explain.changes import Change
from allotrope.explain.drive import Asked
from allotrope.explain.explanation import Explained
from allotrope.explain.formats import formats
from allotrope.explain.predict import predict
from allotrope.explain.rehearse import Dressed, rehearse
from allotrope.explain.session import Setting, explain
from allotrope.hw import peaks
from allotrope.hw.detect import detect
from allotrope.runtime.options import RuntimeOptions
from tests.narrow_kit import checkpoint
from tests.schemas import fits
from tests.test_explain import CEILINGS
from tests.verifying import VOCAB
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


def test_keys_less_their_mean_are_rehearsed_with_their_bias(tmp_path: Path) -> None:
    """Where a build would take the mean off keys that had no bias, the rehearsed layers have one; no longer wide."""
    source = checkpoint("galactica", tmp_path / "model")
    (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    usual: dict[str, Any] = {"device": "cpu", "executor": "eager", "tune": "off", "threads": 1}
    wide = build(str(source), tmp_path / "wide", **usual).manifest
    narrow = build(str(source), tmp_path / "narrow", kv="int8", calibration_tokens=64, **usual).manifest
    plain = build(str(source), tmp_path / "plain", kv="int8", without="centre", **usual).manifest
    assert "blocks.1.attn.qkv.bias" in narrow.plan.weights and "blocks.1.attn.qkv.bias" not in plain.plan.weights
    for engine, words, wanted in (
        (wide, "kv=int8", narrow),
        (narrow, "kv=wide", wide),
        (plain, "kv=wide", wide),
        (plain, "kv=fp8", plain),
    ):
        outline = Change.parse(words).outline(engine, "cpu")
        assert outline is not None
        changed, _ = outline.chosen(detect("cpu"), 1)
        assert changed.weights == wanted.plan.weights, words


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


def test_what_is_rehearsed_is_the_changed_plan(wide: Path, found: Explained, setting: Setting) -> None:
    """The same engine again, by its own weights' shapes alone, and one with other formats: call by call what runs."""
    got = predict(wide, found, Change.parse("int8,activations=int8"), setting)
    assert got.asked == {"batch": 1, "input": ASKED.into, "output": ASKED.output}
    assert got.total_ms == pytest.approx(got.t_ctx_ms + got.t_gen_ms) and got.t_ctx_ms > 0 < got.t_gen_ms
    assert got.step_ms == pytest.approx(got.t_gen_ms / (ASKED.output - 1))
    now = found.account.decode.wall_s / found.account.decode.steps
    assert got.saved_step_ms is not None and got.saved_step_ms + got.step_ms == pytest.approx(1e3 * now)
    coded = {"attn.o", "attn.qkv", "mlp.down", "mlp.gate_up"}
    assert {name for name in got.tactics if not name.startswith("head")} >= coded - {"attn.qkv", "mlp.gate_up"}
    assert got.formats["weights"] == ["int8"] and got.formats["activations"] == ["int8"]
    more = predict(wide, found, Change.parse("batch=4"), setting)
    assert more.asked == {"batch": 4, "input": 24, "output": 6} and not more.tactics
    assert "tokens/s instead of" in more.words and more.t_ctx_ms > 0


@pytest.mark.parametrize("words", ["wide,dtype=bf16", "int8", "int4", "int4,asymmetric=true", "fp8", "bf16", "kv=int8"])
def test_made_up_weights_lie_as_real_ones_do_and_give_finite_values(
    words: str, wide: Path, found: Explained, setting: Setting
) -> None:
    outline = Change.parse(words).outline(found.manifest, "cpu")
    assert outline is not None
    plan, _ = outline.chosen(detect("cpu"), 1)
    dressed = Dressed(wide, found.manifest, plan)
    for shard in layout.shards(plan):
        for entry in shard.entries:
            array = dressed.array(entry.name)
            assert (array.shape, array.nbytes) == (entry.shape, entry.nbytes) and array is dressed.array(entry.name)
    norms = dressed.array("blocks.0.attn.norm.weight").astype(np.float64)
    assert norms.std() > 0
    scales = [dressed.array(name) for name in plan.weights if name.endswith(".scales")]
    assert scales or words in ("wide,dtype=bf16", "bf16", "kv=int8")
    assert all(1e-4 < one.min() <= one.max() < 1e-3 for one in scales), "0.02 times a code saturates what follows"
    run = rehearse(wide, found.manifest, plan, Asked(2, 9, 4), setting.options, setting.device, 0)
    assert len(run.seen.lives) == 2 and all(life.reason == "length" for life in run.seen.lives.values())
    steps = [one.call_s for one in run.seen.steps]
    assert len(steps) == 4 and all(one is not None and len(one) == len(plan.calls) for one in steps)


def test_a_large_models_weights_share_memory(wide: Path, found: Explained, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = found.manifest.plan
    names = [name for name in plan.weights if name.endswith("attn.o.weight")]
    apart, shared = Dressed(wide, found.manifest, plan), Dressed(wide, found.manifest, plan)
    assert not np.may_share_memory(*(apart.array(name) for name in names[:2]))
    monkeypatch.setattr(dressing, "_DISTINCT", 0)
    assert np.may_share_memory(*(shared.array(name) for name in names[:2]))


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
        predict(Path("engine"), recorded, Change.parse("int8"), setting)
