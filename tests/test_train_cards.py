"""Evaluating from end to end, on tiny random models of every kind, and the cards and curves made of what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tests.test_train_fit import chat, made_up, small
from tools.train import card, card_sections, card_words, chart, evaluate, export, network, vocabulary
from tools.train.corpus import heldout
from tools.train.corpus.chat import conversations
from tools.train.corpus.chat_phrases import phrases
from tools.train.corpus.rows import write
from tools.train.evaluation import chats, targets, texts
from tools.train.evaluation.lm import LanguageModel
from tools.train.spec import load, names

CURVE = [[10, 5.0, 5.1], [20, 3.0, 3.2], [30, 2.5, 2.75]]
SOURCES = [
    {"project": "alpha", "version": "1.0", "license": "MIT", "split": "train"},
    {"project": "beta", "version": "2.0", "license": "BSD-3-Clause", "split": "train"},
    {"project": "gamma", "version": "3.0", "license": "MIT", "split": "heldout"},
    {"project": "empty", "version": "4.0", "license": "MIT", "split": "train"},
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for split, first, count in (("train", 0, 240), ("heldout", 1000, 24)):
        rows = [made_up(number) for number in range(first, first + count)]
        for kind in ("code", "docs", "functions"):
            write(folder / kind / f"{split}.jsonl.xz", rows)
        write(folder / "chat" / f"{split}.jsonl.xz", [chat(number) for number in range(first, first + count)])
        stories = [{**row, "project": name} for name in ("tinystories", "shakespeare") for row in rows]
        write(folder / "stories" / f"{split}.jsonl.xz", stories)
    counts = {"code_bytes": 9, "docs_bytes": 9, "functions": 9}
    table = [{**row, **(dict.fromkeys(counts, 0) if row["project"] == "empty" else counts)} for row in SOURCES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heldout, "_TESTED", 12)  # so that some functions are left for docsum's text
        heldout.write_heldout(folder, folder / "data")
    (folder / "data" / "sources.json").write_text(json.dumps(table))
    return folder


@pytest.fixture(scope="module")
def models(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("models")
    for name in names():
        spec = small(name)
        folder = vocabulary.train(spec, work, out)
        torch.manual_seed(0)
        export.export(spec, network.network(spec).state_dict(), folder)
        told = {"steps": 30, "tokens": 15360, "seconds": 61.5, "seed": 1, "held_out_loss": 2.7512, "curve": CURVE}
        told |= {"device": "some GPU", "versions": {"torch": "2.13.0"}, "spec": asdict(spec)}
        (folder / "training.json").write_text(json.dumps(told))
    return out


@pytest.fixture
def _tiny(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evaluate, "DATA", work / "data")
    monkeypatch.setattr(card, "DATA", work / "data")
    monkeypatch.setattr(evaluate, "load", small)
    monkeypatch.setattr(card, "load", small)
    monkeypatch.setattr(chats, "LONG_COUNT", 2)
    monkeypatch.setattr(chats, "TOKENS", 16)
    monkeypatch.setattr(chats, "LONG_TO", 700)
    yield


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("name", names())
def test_evaluation_and_card(models: Path, work: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [name, "--work", str(work), "--out", str(models)]
    assert evaluate.main([*options, "--more", "2000", "--device", "cpu"]) == 0
    found = json.loads((models / name / "evaluation.json").read_text())
    said = capsys.readouterr().out
    text = found["text"]
    assert text["bits_per_byte_interval"][0] < text["bits_per_byte"] < text["bits_per_byte_interval"][1]
    assert text["trigram"] < text["bits_per_byte"], "random weights know nothing"
    assert found["more_text"]["bytes"] >= 2000
    assert [target["what"] for target in found["targets"]] == [target.label for target in targets.of(name)]
    assert said.count("MISSED") + said.count("met ") == len(found["targets"])
    if name == "tinychat":
        low, high = found["chat_beyond_training_length"]["prompt_tokens"]
        assert 512 < low <= high <= 700

    assert card.main([name, "--out", str(models)]) == 0
    page = (models / name / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\n")
    assert f"{text['bits_per_byte']:.3f}" in page and f"{text['xz_9']:.3f}" in page
    assert f"{found['parameters']:,}" in page and "2.7512" in page and "some GPU" in page
    assert ("**Trained to stand rounding**" in page) == (name in card_words.WITHOUT)
    assert page.count("**missed**") == sum(not target["met"] for target in found["targets"])
    assert ("alpha 1.0" in page) == (name != "tinygpt2") and "empty" not in page
    assert page == card.card(card.Records.read(name, models / name, work / "data" / "sources.json"), models / name)
    assert (models / name / "loss.svg").is_file()


def test_a_card_for_every_model() -> None:
    for words in (card_words.TAGS, card_words.SHOW, card_words.LIMITS, evaluate.TASKS):
        assert sorted(words) == names()
    assert set(targets.TARGETS) <= set(names())
    sturdy = {name for name in names() if load(name).recipe.noise or load(name).recipe.logit_limit}
    assert set(card_words.WITHOUT) == sturdy, "what standing rounding costs is said of all that were trained for it"


def test_samples_are_fenced_whatever_they_say() -> None:
    assert card_sections.fenced("a\r```\nb\n") == "````text\na\\r```\nb\n````"


def test_targets_are_bounds() -> None:
    low, high = targets.Target("a", ("x",), 1.2, at_most=True), targets.Target("b", ("y", "z"), 0.5, index=0)
    found = {"x": 1.2, "y": {"z": [0.4, 0.9]}}
    assert low.met(found) and not high.met(found)
    assert not low.met({"x": 1.21}) and high.met({"y": {"z": [0.5, 0.9]}})
    assert high.told(found) == {"what": "b", "value": 0.4, "wanted": "at least 0.5", "met": False}


def test_every_way_to_ask_is_recognised() -> None:
    for topic, ways in phrases().questions.items():
        for opening in phrases().openings:
            for said in (opening + way.format("read_rows") for way in ways):
                for form in phrases().showing:
                    question = form.replace("{asked}", said).replace("{code}", "def f(x):\n    return x")
                    one = texts.Conversation(({"role": "user", "content": question}, {}), "question")
                    assert chats.asked(one) == topic, question
    small_talk = texts.Conversation(({"role": "user", "content": "Does it raise?"}, {}), "greeting")
    assert chats.asked(small_talk) == "greeting"  # there was no code


def test_answers_are_right_word_for_word_or_as_another_reply_of_the_same_talk() -> None:
    def right(kind: str, text: str, expected: str) -> bool:
        return chats.Answer(kind, 9, text, True, expected).right

    assert right("count", "It takes two parameters.", "It takes two parameters.")
    assert not right("count", "It takes three parameters.", "It takes two parameters.")
    one, other = phrases().small_talk["greeting"].replies[:2]
    assert right("greeting", other, one) and not right("greeting", "Goodbye!", one)
    assert chats.Answer("count", 9, "", True, "").checkable
    assert not chats.Answer("summary", 9, "", True, "").checkable


@pytest.mark.usefixtures("_tiny")
def test_engine_and_transformers_answer_alike_within_the_training_length(models: Path) -> None:
    """So that beyond it, where only the engine can be asked, it is the same way of asking."""
    model = LanguageModel(models / "tinychat", "cpu")
    rows = conversations([made_up(number) for number in range(9)], "heldout")
    listed = [texts.Conversation(tuple(row["messages"]), str(row["kind"])) for row in islice(rows, 40)]
    listed = chats.fitting(model, listed)[:6]
    assert len(listed) == 6
    assert chats.answer(model, listed) == chats.answer_long(model, listed)


def test_pages_of_chat_are_read_back() -> None:
    turns = [{"role": "user", "content": "a\n\nb"}, {"role": "assistant", "content": "c"}]
    assert texts.messages("<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n") == turns
    with pytest.raises(texts.UsageError, match="no conversation"):
        texts.messages("a text")


def _lines(svg: str) -> list[list[tuple[float, ...]]]:
    tree = ElementTree.fromstring(svg)
    found = tree.findall(".//{http://www.w3.org/2000/svg}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points", "").split()] for line in found]


def test_the_curve_has_both_lines_in_the_frame_and_falls() -> None:
    svg = chart.loss_curve("a < b: loss", CURVE)
    trained, held_out = _lines(svg)
    for line in (trained, held_out):
        assert len(line) == 3
        assert all(chart.LEFT <= x <= chart.WIDTH - chart.RIGHT for x, _ in line)
        assert all(chart.TOP <= y <= chart.HEIGHT - chart.BOTTOM for _, y in line)
        assert line[0][1] < line[1][1] < line[2][1], "a smaller loss stands lower"
    assert all(t[1] > h[1] for t, h in zip(trained, held_out, strict=True))
    assert "training 2.500" in svg and "held-out 2.750" in svg and "a &lt; b" in svg
    ys = [float(y) for y in re.findall(r'y="([\d.]+)" fill="#\w+" font-weight', svg)]
    assert abs(ys[0] - ys[1]) >= chart.APART - 0.2
    with pytest.raises(SystemExit, match="needs two points"):
        chart.loss_curve("x", CURVE[:1])


@pytest.mark.parametrize("scale", (0.013, 0.25, 1, 7, 300))
def test_ticks_are_round_and_enough(scale: float) -> None:
    svg = chart.loss_curve("x", [[step * 100, scale * loss, scale * held] for step, loss, held in CURVE])
    labels = [float(value) for value in re.findall(r'text-anchor="end">([\d.]+)<', svg)]
    assert 3 <= len(labels) <= 9 and labels == sorted(set(labels))
    steps = {round(b - a, 9) for a, b in pairwise(labels)}
    assert len(steps) == 1


def test_a_first_point_far_above_does_not_flatten_the_rest() -> None:
    points: list[list[float]] = [[1, 900.0, 5.0], *([step, 3 - step / 100, 3.1 - step / 100] for step in range(2, 90))]
    trained, _ = _lines(chart.loss_curve("x", points))
    assert trained[-1][1] - trained[5][1] > 60


def test_figures_are_written_short() -> None:
    told: dict[str, Any] = {"a": 1 / 3, "b": (1, 2 / 3), "c": "x", "d": None}
    assert evaluate.short(told) == {"a": 0.333333, "b": [1, 0.666667], "c": "x", "d": None}


def test_records_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run the steps fit and evaluate first"):
        card.Records.read("pycoder", tmp_path, tmp_path / "sources.json")
