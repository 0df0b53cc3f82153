"""`allotrope summarize`: both sides' texts, their ROUGE, how they are compared, and what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer

from allotrope import tokenizers
from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import UsageError
from allotrope.eval import articles, paired, rouge
from allotrope.eval.summaries import Asked, Found
from allotrope.eval.writing import Written
from tests.schemas import fits, fits_kept
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
DOCSUM, DATA = ROOT / "models" / "docsum", ROOT / "models" / "data" / "docsum_test.csv"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docsum") / "engine"
    build(str(DOCSUM), out, device="cpu", tune="off")
    return out


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    code = main(["summarize", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if captured.out else {}, captured.err


def by_hand(count: int, most: int, room: int) -> tuple[list[str], list[str]]:
    """References, and what transformers writes of the same articles, each by itself, with its own tokenizer."""
    model = transformers.LlamaForCausalLM.from_pretrained(DOCSUM, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(DOCSUM)
    with DATA.open(newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    texts = []
    for row in rows:
        begin, *ids = words(row["article"] + " TL;DR:").input_ids
        given = torch.tensor([[begin, *ids[-(room - 1) :]]])
        ended = model.generate(given, do_sample=False, max_new_tokens=most, eos_token_id=2, pad_token_id=0)
        texts.append(words.decode(ended[0, given.shape[1] :], skip_special_tokens=True))
    return [row["highlights"] for row in rows], texts


def test_the_verb_is_what_one_would_do_by_hand(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In batches, padded, with articles cut to 150 tokens."""
    options = ("--data", DATA, "--examples", 5, "--max-output", 24, "--max-input", 150, "--batch-size", 3)
    code, found, err = call(capsys, engine, *options)
    assert code == 0
    fits("summarize", found)
    assert fits_kept("summarize", engine) == found
    references, texts = by_hand(5, 24, 150)
    kept = json.loads((engine / "summarize.json").read_text())
    assert [one["original"].strip() for one in kept["samples"]] == [text.strip() for text in texts]
    assert found["same_texts"] == 5 or all(one["explained"] for one in found["divergences"])
    by = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    scores = [by.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    for name, value in found["rouge"]["original"].items():
        assert value == pytest.approx(100 * np.mean([one[name].fmeasure for one in scores]), abs=1e-9)
    assert found["rouge"]["original"]["rouge1"] > 5
    assert 1 <= found["data"]["cut"] < 5 and found["paired"]["difference"] == 0
    with (engine / "summaries.csv").open(newline="", encoding="utf-8") as file:
        beside = list(csv.DictReader(file))
    assert [row["engine"] for row in beside] == [one["engine"] for one in kept["samples"]]
    assert [row["reference"] for row in beside] == references
    lines = err.splitlines()
    assert all(len(line) <= 80 for line in lines[:-1]) and "every text is the original's" in err
    assert f"--data {DATA}" in kept["command"] and kept["environment"]["engine"]["family"] == "llama"


def test_an_engine_that_says_something_else_is_found_out(
    engine: Path, forge: Forge, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The last norm doubled for a fifth of the width: the difference is no rounding, and the gate shuts."""

    def louder(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        changed = values.copy()
        changed[::3] = changed[::3] * 4
        return changed

    damaged = forge.planted(engine, slots={"head.norm.weight": louder})
    options = ("--data", DATA, "--examples", 6, "--max-output", 16, "-o", tmp_path / "kept")
    code, found, err = call(capsys, damaged, *options, "--threshold", 0.5)
    apart = found["divergences"]
    assert apart and not all(one["explained"] for one in apart) and "NOT EXPLAINED" in err
    assert found["same_texts"] == 6 - len(apart)
    judged = next(one for one in apart if one["explained"] is False)
    assert judged["margin"] > 10 * judged["floor"] > 0
    assert code == (3 if found["paired"]["difference"] < -0.5 else 0) and found["passed"] is (code == 0)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"summarize.json", "summaries.csv"}
    assert not (damaged / "summarize.json").exists()
    # A threshold that cannot be met by an engine that is worse at all, and one that anything meets.
    assert call(capsys, damaged, *options, "--threshold", 100)[0] == 0


def found_of(ours: list[float], theirs: list[float], threshold: float | None) -> Found:
    """A result with these scores and nothing else."""
    scores = tuple(dict.fromkeys(rouge.MEASURES, one) for one in (ours, theirs))
    pairs = {name: paired.compare(ours, theirs) for name in rouge.MEASURES}
    asked = Asked(Path("x.csv"), len(ours), threshold=threshold)
    rows, nothing = [articles.Article("a", "b", "c")] * len(ours), Written((), 1.0)
    return Found(asked, rows, [], False, 9, nothing, nothing, ([], []), (scores[0], scores[1]), pairs, [])


def test_the_gate_is_how_much_worse_than_the_original() -> None:
    theirs = [20.0, 30.0, 40.0, 31.0]
    assert found_of([19.0, 29.0, 39.0, 30.0], theirs, 1.0).passed is True
    assert found_of([19.0, 29.0, 39.0, 29.9], theirs, 1.0).passed is False
    assert found_of([90.0, 90.0, 90.0, 90.0], theirs, 0.0).passed is True  # better is well
    assert found_of([0.0] * 4, theirs, None).passed is None
    noisy = found_of([10.0, 40.0, 30.0, 41.0], theirs, 2.0)
    least = noisy.paired["rouge1"].detectable
    assert least is not None and least > 2 and noisy.needed == int(np.ceil(4 * (least / 2) ** 2))
    assert found_of([10.0, 40.0, 30.0, 41.0], theirs, 100.0).needed is None


def test_a_prompt_is_cut_from_the_left_and_keeps_its_end() -> None:
    words = tokenizers.load(DOCSUM, 4096)
    whole = articles.plain_prompt(words, "def f(x):\n    return x + 1", 1000)
    assert whole.cut == 0 and words.decode(whole.ids) == "def f(x):\n    return x + 1 TL;DR:"
    cut = articles.plain_prompt(words, "def f(x):\n    return x + 1", 12)
    assert cut.ids == (1, *whole.ids[-11:]) and cut.cut == len(whole.ids) - 12
    assert words.decode(cut.ids).endswith(" TL;DR:")


@pytest.mark.parametrize("room", (60, 100, 5000))
def test_a_conversation_is_cut_inside_the_article(room: int) -> None:
    words = tokenizers.load(ROOT / "models" / "tinychat", 2560)
    article = "It reads the file — süß — and returns its lines. " * 40
    asked = articles.chat_prompt(words, article, room)
    text = words.decode(asked.ids, skip_special=False)
    assert len(asked.ids) <= room and text.startswith(f"<|im_start|>system\n{articles.SYSTEM}<|im_end|>")
    assert text.endswith("returns its lines. <|im_end|>\n<|im_start|>assistant\n")
    assert (asked.cut == 0) == (room == 5000)
    if asked.cut:
        assert len(asked.ids) > room - 8  # no more is cut than must be


TABLE = "id,article,highlights\n"


@pytest.mark.parametrize(
    ("content", "said"),
    (
        ("a,b\n1,2\n", "no column id and no column article and no column highlights; it has a, b"),
        ("id,article\n1,2\n", "no column highlights; it has id, article"),
        ("", "it has nothing"),
        (TABLE, "no rows in it"),
        (TABLE + "1,2\n", "line 2: a row with fewer fields than columns"),
        (TABLE + '1,"two,3\n', "not a CSV: unexpected end of data"),
        (TABLE.encode() + b"1,\xff,3\n", "not UTF-8 at byte 24"),
        (None, "cannot be read: No such file"),
    ),
)
def test_a_table_that_is_none(
    content: str | bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before an engine is looked for: the one named does not exist."""
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    code, found, err = call(capsys, tmp_path / "none", "--data", path)
    assert code == 2 and not found and len(err.splitlines()) == 1
    assert said in err and str(path) in err


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (("--examples", 0), "--examples is 0; give a number from 1"),
        (("--max-output", -3), "--max-output is -3; give a number from 1"),
        (("--batch-size", 0), "--batch-size is 0; give a number from 1 to 4096"),
        (("--threshold", "nan"), "--threshold is nan; give points of ROUGE-1 from 0 to 100"),
        (("--threshold", -1), "--threshold is -1.0; give points"),
        (("--max-output", 2048), "2048 new tokens leave 0 of 2048 for the article"),
        (("--max-output", 2044), "2044 new tokens leave 4 of 2048 for the article"),
        (("--max-input", 1949), "--max-input is 1949; give a number from 8 to 1948"),
        (("--prompt", "chat"), "--prompt is chat, and the engine has no chat template"),
        (("--original", ROOT / "models" / "tinygpt2"), "is another model"),
        (("-o", "/proc/nowhere"), "/proc/nowhere: cannot be written"),
    ),
)
def test_what_cannot_be_asked(
    engine: Path, options: tuple[object, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = call(capsys, engine, "--data", DATA, *options)
    assert code == 2 and not found and len(err.splitlines()) == 1 and said in err


def test_what_is_wrong_with_a_file_is_said_before_torch_is_there(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("id,article\n")
    (tmp_path / "none.txt").write_text(" \n")
    code = (
        "import sys; from allotrope.cli import main\n"
        "said = [main(['summarize', '.', '--data', 'none.csv']), main(['eval', '.', '--text', 'none.txt'])]\n"
        "print(said, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[2, 2] False" and "no column highlights" in ran.stderr


def test_rouge_score_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UsageError, match=r"rouge-score is not installed; pip install 'allotrope\[eval\]'"):
        rouge.scorer(stem=False)


def test_a_long_field_and_a_mark_of_byte_order_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    long = "x" * 200_000
    path.write_text(f'\ufeffhighlights,id,article\n"a, ""b""\nc",7,{long}\n', encoding="utf-8")
    [one] = articles.read(path, 5)
    assert one == articles.Article("7", long, 'a, "b"\nc')


def test_a_blank_text_is_left_out_and_the_rest_is_read(tmp_path: Path) -> None:
    path, said = tmp_path / "t.csv", list[str]()
    path.write_text(TABLE + '1,,three\n2," \n ",three\n3,two,\n4,two,three\n5,,\n6,two,three\n', encoding="utf-8")
    assert [one.id for one in articles.read(path, 1, said.append)] == ["4"]
    assert said == [
        f"{path}, line 2: article is blank; left out",
        f"{path}, line 4: article is blank; left out",
        f"{path}, line 5: highlights is blank; left out",
    ]
    assert [one.id for one in articles.read(path, 9)] == ["4", "6"]
    path.write_text(TABLE + "1,,three\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no row with a text in it; give at least one article"):
        articles.read(path, 9)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # beside others' work
def test_on_docsum_in_int4_the_interval_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shuffled 1,000 times (which side is which tossed anew for each article), it holds zero as often as it says."""
    out = tmp_path / "engine"
    build(str(DOCSUM), out, device="cpu", tune="off", weights="int4", group_size=32)
    code, found, err = call(capsys, out, "--data", DATA, "--examples", 96, "--stem")
    assert code == 0 and "95 % interval" in err
    samples = json.loads((out / "summarize.json").read_text())["samples"]
    gains = np.array([one["rouge"]["engine"]["rouge1"] - one["rouge"]["original"]["rouge1"] for one in samples])
    assert np.count_nonzero(gains) > 48 and found["paired"]["changed"] == np.count_nonzero(gains)
    low, high = found["paired"]["interval"]
    assert low <= gains.mean() <= high
    source = np.random.default_rng(11)
    shuffled = [gains * source.choice((-1.0, 1.0), len(gains)) for _ in range(1000)]
    held = [a <= 0 <= b for a, b in (paired.interval(one, resamples=2000, seed=i) for i, one in enumerate(shuffled))]
    assert 0.93 <= np.mean(held) <= 0.97
    beyond = np.mean([abs(one.mean()) >= abs(gains.mean()) for one in shuffled])
    assert found["paired"]["p_value"] == pytest.approx(beyond, abs=0.06)
    assert (low <= 0 <= high) == (beyond > 0.05) or 0.03 < beyond < 0.08
