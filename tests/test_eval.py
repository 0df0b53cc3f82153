"""`allotrope eval --text`: windows, likelihoods and distances, beside what transformers and plain formulas say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from allotrope import tokenizers
from allotrope.api import LLM, SamplingParams
from allotrope.build import build
from allotrope.eval import distances, forced
from allotrope.eval.distances import compared
from allotrope.eval.windows import windows
from allotrope.models.model import open_model
from tests.eval_kit import MODELS, by_hand, call, network
from tests.schemas import fits, fits_kept
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("docsum", "pycoder", "tinychat", "tinygal", "tinygal-draft", "tinygpt2")


@pytest.fixture(scope="module")
def llama(forge: Forge) -> Path:
    """Built before anybody listens to what is printed."""
    return forge.built("llama")


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_transformers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine"
    build(str(MODELS / name), out, device="cpu", tune="off")
    text = MODELS / "data" / f"{name.removesuffix('-draft')}_heldout.txt"
    code, found, err = call(capsys, out, "--text", text, "--tokens", 600, "--window", 200, "--stride", 70)
    assert code == 0
    fits("eval", found)
    assert fits_kept("eval", out) == found
    model = open_model(MODELS / name)
    words = tokenizers.load(MODELS / name, model.recipe.vocab)
    ids = words.encode(text.read_text(encoding="utf-8"))[:600]
    count, mean = by_hand(network(MODELS / name), ids, 200, 70)
    assert found["text"]["scored"] == count == 599
    assert found["nll_per_token"] == pytest.approx(mean, abs=1e-5)
    assert found["original_nll_per_token"] == pytest.approx(mean, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4) and 1 < found["perplexity"] < 400
    assert found["same_top1"] > 0.99 and 0 <= found["kl"]["median"] <= found["kl"]["p99"] <= found["kl"]["max"] < 1e-6
    assert all(len(line) <= 80 for line in err.splitlines()[:-1]) and "599 scored in 7 windows of 200" in " ".join(
        err.split()
    )


@pytest.mark.parametrize(
    ("count", "size", "stride"), ((1000, 64, 20), (64, 64, 64), (65, 64, 64), (130, 64, 1), (2, 9, 9))
)
def test_every_token_is_told_once_after_as_many_as_there_can_be(count: int, size: int, stride: int) -> None:
    ids = list(range(count))
    cut = windows(ids, size, stride)
    told = [token for window in cut for token in window.targets]
    unseen = set(range(0, count, stride)) if stride == size else {0}  # what nothing stands before
    assert told == [token for token in ids if token not in unseen]
    for window in cut[1:]:
        assert window.first >= min(size - stride, len(window.ids) - 1) or stride == size
    assert max(len(window.ids) for window in cut) <= size


def test_the_figures_are_what_the_formulas_say() -> None:
    source = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(700, 50, generator=source) * 2 for _ in range(2))
    ours[::2] = theirs[::2]
    targets = torch.randint(50, (700,), generator=source).tolist()
    tokens = compared(ours, theirs, targets)
    p, q = (side.double().softmax(-1).numpy() for side in (theirs, ours))
    rows = np.arange(700)
    kl = (p * np.log(p / q)).sum(-1)
    found = distances.figures(tokens, seed=0)
    assert found["nll_per_token"] == pytest.approx(-np.log(q[rows, targets]).mean())
    assert found["original_nll_per_token"] == pytest.approx(-np.log(p[rows, targets]).mean())
    assert found["kl"]["mean"] == pytest.approx(kl.mean()) and found["kl"]["max"] == pytest.approx(kl.max())
    assert found["kl"]["p99"] == pytest.approx(np.quantile(kl, 0.99)) and found["kl"]["median"] < 1.0
    assert found["same_top1"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean()) and found["same_top1"] > 0.5
    change = q[rows, targets] - p[rows, targets]
    assert found["probability_change"]["mean"] == pytest.approx(change.mean())
    assert found["probability_change"]["rms"] == pytest.approx(np.sqrt((change**2).mean()))
    assert found["perplexity_ratio"] == pytest.approx(found["perplexity"] / found["original_perplexity"])
    low, high = found["perplexity_ratio_interval"]
    assert low < found["perplexity_ratio"] < high
    blocks = distances.samples(tokens)
    assert [one["tokens"] for one in blocks] == [128] * 5 + [60]
    assert sum(one["tokens"] * one["nll"] for one in blocks) / 700 == pytest.approx(found["nll_per_token"])


def test_an_impossible_token_costs_without_end_and_breaks_nothing() -> None:
    ours, theirs = torch.zeros(2, 4), torch.zeros(2, 4)
    ours[:, 3] = theirs[:, 3] = -math.inf
    found = distances.figures(compared(ours, theirs, [3, 1]), seed=0)
    assert math.isinf(found["nll_per_token"]) and found["kl"]["max"] == 0
    theirs[:, 3] = 0.0  # what the engine alone thinks impossible
    found = distances.figures(compared(ours, theirs, [1, 1]), seed=0)
    assert math.isinf(found["kl"]["mean"]) and found["nll_per_token"] == pytest.approx(math.log(3))


def test_steps_hold_no_more_than_they_may() -> None:
    steps = list(forced.packed([(0, 0, 5), (1, 3, 3), (2, 2, 11), (3, 0, 1)], 4))
    assert steps == [[(0, 0, 4)], [(0, 4, 5), (2, 2, 5)], [(2, 5, 9)], [(2, 9, 11), (3, 0, 1)]]
    assert not list(forced.packed([(0, 0, 0)], 4))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "some text.txt"
    path.write_text("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 12 × 7 = 84.\r\n" * 3, newline="")
    return path


@pytest.mark.parametrize("kind", ("gpt2", "llama"))
def test_how_steps_are_cut_changes_nothing_and_prompt_logprobs_agree(
    kind: str, forge: Forge, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows of unlike length, pages of four tokens, steps of eleven: to the bit."""
    path = forge.built(kind)
    options = ("--text", text, "--window", 50, "--stride", 30)
    whole = call(capsys, path, *options)[1]
    pieces = call(capsys, path, *options, "--max-batched-tokens", 11, "--page-size", 4, "--batch-size", 2)[1]
    assert pieces["nll_per_token"] == whole["nll_per_token"] and pieces["kl"] == whole["kl"]
    read = call(capsys, path, *options, "--tokens", 40)[1]
    assert read["text"]["windows"] == 1 and read["text"]["scored"] == 39
    with LLM(path, threads=1) as llm:
        ids = llm.tokenizer.encode(text.read_bytes().decode())[:40]
        [output] = llm.generate([ids], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    assert output.prompt_logprobs is not None
    told = [row[token].logprob for row, token in zip(output.prompt_logprobs, ids, strict=True) if row is not None]
    assert read["nll_per_token"] == pytest.approx(-np.mean(told), abs=1e-6)


def test_a_damaged_engine_is_far_away(
    forge: Forge, llama: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = forge.planted(llama, slots={"head.norm.weight": lambda values: values * 1.1})
    found = call(capsys, damaged, "--text", text)[1]
    assert found["kl"]["mean"] > 1e-4 and found["same_top1"] == 1.0, "a temperature, in effect"
    assert found["perplexity_ratio"] != pytest.approx(1, abs=1e-5)
    low, high = found["perplexity_ratio_interval"]
    assert low <= found["perplexity_ratio"] <= high
    assert call(capsys, llama, "--text", text)[1]["kl"]["mean"] < 1e-9


@pytest.mark.parametrize(
    ("content", "options", "said"),
    (
        (b"", (), "the text is empty; give some"),
        (b" \n\t ", (), "the text is empty; give some"),
        (b"ab\xffc", (), "not UTF-8 at byte 2; convert it to UTF-8"),
        (None, (), "cannot be read: No such file"),
        (b"some", ("--stride", "0"), "--stride is 0; give a number from 1"),
        (b"some", ("--window", "1"), "--window is 1; give a number from 2"),
        (b"some", ("--tokens", "1"), "--tokens is 1: nothing stands before it"),
        (b"some", ("--tokens", "-4"), "--tokens is -4; give a number from 0"),
        (b"some", ("--batch-size", "0"), "--batch-size is 0; give a number from 1 to 4096"),
        (b"some", ("--window", "60"), "the text has 5 tokens, fewer than a window of 60"),
        (b"some", ("--window", "65"), "--window is 65, and both sides are the same model up to 64 tokens"),
        (b"some", ("--window", "4", "--stride", "5"), "--stride is 5, beyond the window's 4 tokens"),
        (b"some", ("--original", str(MODELS / "tinygpt2")), "is another model"),
        (b"some", ("--execute",), "--execute goes with --code; give --code FILE"),
        (b"some", ("-o", "/proc/nowhere"), "/proc/nowhere: cannot be written"),
    ),
)
def test_what_cannot_be_read_or_asked(
    content: bytes | None,
    options: tuple[str, ...],
    said: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    code, found, err = call(capsys, llama, "--text", path, *options)
    assert code == 2 and not found and len(err.splitlines()) == 1 and said in err


def test_a_run_over_another_text_does_not_replace_the_one_before(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [tmp_path / name for name in ("one.txt", "two.txt")]
    for text in texts:
        text.write_text("Diamond and graphite are the same element. " * 4)
    kept = tmp_path / "kept"
    for text, tokens in ((texts[0], 40), (texts[1], 40), (texts[0], 30), (texts[1], 40)):
        assert call(capsys, llama, "--text", text, "--tokens", tokens, "-o", kept)[0] == 0
    fits_kept("eval", kept)
    whole = json.loads((kept / "eval.json").read_text())
    runs = [whole, *whole["earlier"]]
    assert [(Path(run["text"]["file"]).name, run["text"]["read"]) for run in runs] == [
        ("two.txt", 40),
        ("one.txt", 30),
        ("one.txt", 40),
    ]
    assert all(run["samples"] and run["command"] and "earlier" not in run for run in runs[1:])
    (kept / "eval.json").write_text(json.dumps(whole | {"engine_digest": "of another engine", "earlier": []}))
    call(capsys, llama, "--text", texts[0], "-o", kept)
    assert json.loads((kept / "eval.json").read_text())["earlier"] == []


def test_nothing_to_evaluate(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to evaluate; give --text FILE, --code FILE or both" in call(capsys, llama)[2]
    code, _, err = call(capsys, llama, "--stride", 4)
    assert code == 2 and "--stride goes with --text" in err
