"""`python -m tools.train`: every step says in one line what it lacks, and `all` runs from the corpus to the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_train_fit import made_up, small
from tools.train import __main__ as steps
from tools.train import card, evaluate
from tools.train.corpus import fetch
from tools.train.corpus.heldout import write_heldout
from tools.train.corpus.rows import write
from tools.train.spec import load


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a step that fails says: its error, whichever way it leaves."""
    try:
        code: Any = steps.main(argv)
        text = capsys.readouterr().err
    except SystemExit as error:
        text = error.code if isinstance(error.code, str) else capsys.readouterr().err
        code = error.code
    assert code, f"{argv} did not fail"
    assert "Traceback" not in text
    return text.strip()


@pytest.mark.parametrize(
    ("setting", "message"),
    (
        ("rate=e-5", "give KEY=NUMBER, where KEY is one of steps, rows"),
        ("rate=²", "give KEY=NUMBER"),
        ("speed=3", "give KEY=NUMBER"),
        ("steps=inf", "give KEY=NUMBER"),
        ("steps=2.5", "steps takes a whole number"),
        ("pack=2", "pack takes 0 or 1"),
        ("rate=nan", "rate is nan; it must be above 0"),
        ("weight_decay=nan", "weight_decay is nan; it must be at least 0"),
        ("steps=0", "steps is 0; it must be at least 1"),
        ("rows=-1", "rows is -1; it must be at least 1"),
        ("warmup=0", "warmup is 0; it must be at least 1"),
        ("rate=0", "rate is 0.0; it must be above 0"),
        ("matrix_rate=inf", "matrix_rate is inf; it must be above 0"),
        ("dropout=1", "dropout is 1.0; it must be from 0 to below 1"),
    ),
)
def test_settings_that_make_no_recipe_are_refused(setting: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        steps.changed(load("docsum"), [setting])


@pytest.mark.parametrize(
    ("argv", "message"),
    (
        ("", "usage: python -m tools.train STEP"),
        ("train docsum", "steps: corpus, tokenizer, fit"),
        ("tokenizer docsum", "functions/train.jsonl.xz: no such file; run `python -m tools.train corpus` first"),
        ("fit docsum --device cpu", "functions/train.jsonl.xz: no such file; run `python -m tools.train corpus` first"),
        ("fit docsum --device cpu --steps 0", "steps is 0; it must be at least 1"),
        ("fit docsum tinygpt2 --device cpu --set speed=1", "--set speed=1: give KEY=NUMBER"),
        ("polish docsum --device cpu", "docsum has no second training"),
        ("polish pycoder --device cpu", "has no weights; run `python -m tools.train fit pycoder` first"),
        ("evaluate docsum", "there is no trained model"),
        ("evaluate nothing", "no model 'nothing': there is docsum, pycoder"),
        ("card docsum", "training.json: No such file or directory; run the steps fit and evaluate first"),
        ("all docsum --device cpu --steps 2.5", "steps takes a whole number"),
        ("all docsum --device cpu", "functions/train.jsonl.xz: no such file"),
    ),
)
def test_a_step_says_in_a_line_what_it_lacks(
    argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv.split()
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")] if len(words) > 1 else []
    if words[:1] == ["card"]:
        places = places[2:]
    assert message in said(capsys, *words, *places)
    assert not (tmp_path / "out").exists(), "a step that fails leaves nothing behind"


@pytest.mark.parametrize("step", ("fit tinygpt2", "polish pycoder", "all tinygpt2"))
def test_a_gpu_that_is_not_there_is_named(step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "no CUDA device" in said(capsys, *step.split(), "--work", str(tmp_path), "--out", str(tmp_path))


def test_the_corpus_asks_for_what_it_needs_before_it_fetches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda *_: pytest.fail("it went to the network first"))
    options = ["corpus", "--work", str(tmp_path / "work"), "--data", str(tmp_path), "--assets", str(tmp_path)]
    assert "tinystories.txt: no such text" in said(capsys, *options)
    assert "0 processes" in said(capsys, *options, "--processes", "0")


@pytest.mark.parametrize("name", ("tinygpt2", "pycoder"))
def test_all_steps_run_and_run_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    work, out = tmp_path / "work", tmp_path / "out"
    for split, first, count in (("train", 0, 120), ("heldout", 1000, 24)):
        rows = [made_up(number) for number in range(first, first + count)]
        for kind in ("code", "docs", "functions"):
            write(work / kind / f"{split}.jsonl.xz", rows)
        write(work / "chat" / f"{split}.jsonl.xz", [])
        stories = [{**row, "project": project} for project in ("tinystories", "shakespeare") for row in rows]
        write(work / "stories" / f"{split}.jsonl.xz", stories)
    write_heldout(work, work / "data")
    (work / "data" / "sources.json").write_text("[]")
    for module in (steps, evaluate, card):
        monkeypatch.setattr(module, "load", small)
    for module in (evaluate, card):
        monkeypatch.setattr(module, "DATA", work / "data")
    monkeypatch.setattr(steps, "polish", lambda argv: pytest.fail("a trial has no second training"))
    options = ["--work", str(work), "--out", str(out), "--device", "cpu", "--steps", "2", "--set", "rows=2"]
    found = []
    for _ in range(2):
        assert steps.main(["all", name, *options]) == 0
        record = json.loads((out / name / "training.json").read_text())
        assert record["steps"] == 2 and (out / name / "README.md").is_file()
        found.append((record["curve"], (out / name / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
    assert {path.name for path in tmp_path.iterdir()} == {"work", "out"}
