"""How the bundled models are judged: each measure against something independent of it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allotrope.errors import UsageError
from tests.tiny import HIDDEN
from tests.tiny import oracle as original
from tests.verifying import VOCAB, checkpoint
from tools.train.evaluation import drafting, functions, intervals, likelihood, lm, quantised, summaries, texts
from tools.train.evaluation.baselines import Trigram, gzip_bits, xz_bits
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Function

KINDS = ("llama", "decicoder", "gpt2", "galactica", "qwen")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, count).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_is_the_originals(folders: dict[str, Path], kind: str) -> None:
    """Several lengths side by side, one of one token; and windows whose every token is told once, with a past."""
    model, whole = LanguageModel(folders[kind], "cpu"), original(folders[kind])
    listed = [ids(64), ids(2, 1), ids(1, 2), ids(40, 3)]
    with torch.no_grad():
        expected = [-_told(whole(torch.tensor([one])).logits[0], one, 1) for one in listed]
        long = ids(150, 4)
        pieces = [(0, 64, 1), (32, 96, 32), (64, 128, 32), (96, 150, 32)]
        parts = [-_told(whole(torch.tensor([long[a:b]])).logits[0], long[a:b], first) for a, b, first in pieces]
    assert model.context == 64
    assert model.surprise([*listed, long]) == pytest.approx([*expected, sum(parts)], rel=1e-5)


def _told(logits: torch.Tensor, tokens: list[int], first: int) -> float:
    chosen = logits.double().log_softmax(-1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:], dtype=torch.int64)]
    return float(chosen[first - 1 :].sum())


@pytest.mark.parametrize("kind", KINDS)
def test_padded_greedy_text_is_that_of_each_prompt_alone(folders: dict[str, Path], kind: str) -> None:
    model = LanguageModel(folders[kind], "cpu")
    prompts = [ids(n, n) for n in (1, 30, 7, 44)]
    alone = [_greedy(original(folders[kind]), prompt, 20) for prompt in prompts]
    assert [list(text.ids) for text in model.write(prompts, 20, ends=())] == alone
    stop = alone[1][5]
    [stopped] = model.write([prompts[1]], 20, ends={stop})
    assert list(stopped.ids) == alone[1][: alone[1].index(stop)]
    assert stopped.ended and stopped.last == stop
    assert [row[-1] for row in model.likeliest(prompts)] == [text[0] for text in alone]


def _greedy(whole: Any, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    with torch.no_grad():
        for _ in range(count):  # no cache, no padding
            text.append(int(whole(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


def test_sampling_follows_the_distribution_and_its_seed(folders: dict[str, Path]) -> None:
    model, prompt = LanguageModel(folders["llama"], "cpu"), ids(9)
    drawn = [text.ids[0] for text in model.write([prompt] * 3000, 1, temperature=0.5, seed=1, ends=())]
    with torch.no_grad():
        odds = (original(folders["llama"])(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
    top = int(odds.argmax())
    spread = math.sqrt(float(odds[top] * (1 - odds[top])) / 3000)
    assert abs(drawn.count(top) / 3000 - float(odds[top])) < 5 * spread
    first, again, other = (model.write([prompt], 20, temperature=1.0, seed=seed, ends=()) for seed in (3, 3, 4))
    assert first == again != other


def test_windows_tell_every_token_once_with_a_past() -> None:
    documents = [list(range(n)) for n in (1, 2, 10, 11, 15, 16, 33, 100)]
    for window in lm.windows(documents, 10, 5):
        assert len(window.ids) <= 10
        assert window.first == 1 if window.ids[0] == 0 else window.first >= 5
    told = Counter((w.document, token) for w in lm.windows(documents, 10, 5) for token in w.ids[w.first :])
    assert told == Counter((place, token) for place, ids in enumerate(documents) for token in ids[1:])


def test_what_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = LanguageModel(folders["llama"], "cpu")
    with pytest.raises(UsageError, match="60 tokens and 5 more exceed the context of 64"):
        model.write([ids(60)], 5)
    with pytest.raises(UsageError, match="run the fit step first"):
        LanguageModel(tmp_path, "cpu")


def test_the_trigram_is_a_distribution_and_equals_a_slow_one() -> None:
    source = random.Random(0)
    documents = [source.choices(range(8), (9, 5, 3, 2, 1, 1, 0, 0), k=40) for _ in range(12)]
    model, slow = Trigram(documents, 9, 8), _SlowKneserNey(documents, 9, 8)
    for context in ((8, 8), (8, 0), (0, 0), (1, 4), (7, 7), (0, 7)):
        found = [model.probabilities([*context, word])[2] for word in range(9)]
        assert sum(found) == pytest.approx(1)
        assert found == pytest.approx([slow.odds(context, word) for word in range(9)])
    held = source.choices(range(8), (9, 5, 3, 2, 1, 1, 0, 0), k=200)
    assert 0 < model.surprise(held) < 200 * math.log(9)
    assert model.tokens == 480


class _SlowKneserNey:
    """Word for word from the definition, with dictionaries."""

    def __init__(self, documents: list[list[int]], vocab: int, begin: int) -> None:
        padded = [[begin, begin, *words] for words in documents]
        triples = Counter(tuple(words[i : i + 3]) for words in padded for i in range(len(words) - 2))
        self.vocab, self.counts = vocab, [Counter[Any](), Counter[Any](), Counter(triples)]
        for _, v, w in triples:
            self.counts[1][v, w] += 1
        for _, w in self.counts[1]:
            self.counts[0][(w,)] += 1

    def odds(self, context: tuple[int, int], word: int, order: int = 2) -> float:
        if order < 0:
            return 1 / self.vocab
        counts, seen = self.counts[order], context[2 - order :]
        lower = self.odds(context, word, order - 1)
        follow = {gram: n for gram, n in counts.items() if gram[:-1] == seen}
        if not follow:
            return lower
        once, twice = (sum(n == m for n in counts.values()) for m in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        total = sum(follow.values())
        return max(follow.get((*seen, word), 0) - discount, 0) / total + discount * len(follow) / total * lower


def test_compressors_know_repetition_and_noise() -> None:
    noise = random.Random(0).randbytes(4000)
    for bits in (gzip_bits, xz_bits):
        assert 8 <= bits(noise) < 8.4
        assert bits(b"abcd" * 5000) < 0.1


def test_int8_and_int4_have_so_many_levels_and_round_to_the_nearest() -> None:
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    weight[2] *= 50
    for rounding, width, levels, most in (
        (quantised.int8_channel, 96, 255, weight.abs().amax(1, keepdim=True) / 127),
        (quantised.int4_group, 32, 15, weight.view(7, 3, 32).abs().amax(-1, keepdim=True) / 7),
        (quantised.int4_group_offset, 32, 16, None),
    ):
        found, exact = rounding(weight).view(7, -1, width), weight.view(7, -1, width)
        assert all(len(torch.unique(group)) <= levels for group in found.flatten(0, 1))
        step = (
            (exact.amax(-1, keepdim=True) - exact.amin(-1, keepdim=True)) / 15 if most is None else most.view(7, -1, 1)
        )
        assert bool(((found - exact).abs() <= step * (0.5 if most is not None else 1) + 1e-6).all())
        assert torch.equal(rounding(torch.zeros(2, 64)), torch.zeros(2, 64))
    loud = weight.clone()
    loud[0, 0] = 1000  # touches its own group only
    assert torch.equal(quantised.int4_group(loud)[:, 32:], quantised.int4_group(weight)[:, 32:])
    with pytest.raises(ValueError, match="groups of 32"):
        quantised.int4_group(torch.zeros(2, 48))


@pytest.mark.parametrize("kind", ("llama", "gpt2", "galactica"))
def test_rounding_takes_the_matrices_of_the_blocks_and_gives_them_back(folders: dict[str, Path], kind: str) -> None:
    model = LanguageModel(folders[kind], "cpu")
    before = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    stored = load_file(folders[kind] / "model.safetensors")
    outer = ("embed", "wte", "wpe", "lm_head")
    inside = {n: w for n, w in stored.items() if w.dim() == 2 and not any(part in n for part in outer)}
    tables = {
        n: w for n, w in stored.items() if w.dim() == 2 and any(part in n for part in ("embed_tokens", "wte", "lm_"))
    }
    with quantised.rounded(model.network, quantised.int8_channel) as count:
        changed = {n for n, w in model.network.state_dict().items() if not torch.equal(w, before[n])}
        assert {name.removeprefix("model.") for name in changed} == {name.removeprefix("model.") for name in inside}
        assert count == sum(weight.numel() for weight in inside.values())
        if kind == "gpt2":  # lies [in, out]: a channel is a column
            found = model.network.transformer.h[0].mlp.c_fc.weight
            assert found.shape[0] == HIDDEN
            scale = before["transformer.h.0.mlp.c_fc.weight"].abs().amax(0) / 127
            assert torch.allclose((found / scale).round(), found / scale, atol=1e-3)
    with quantised.rounded(model.network, quantised.int8_channel, embedding=True) as more:
        assert more == count + sum(weight.numel() for weight in tables.values())
    assert all(torch.equal(weight, before[name]) for name, weight in model.network.state_dict().items())


def test_cost_of_rounding_is_the_change_in_perplexity(folders: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(likelihood, "CASES", (("int8 per channel", False),))
    model = LanguageModel(folders["llama"], "cpu")
    text = texts.Text(tuple(tuple(ids(60, seed)) for seed in range(6)), (60,) * 6, b"x" * 360)
    found = likelihood.rounded(model, text)["formats"]["int8 per channel"]
    exact = likelihood.measure(text, model.surprise(text.documents), None)
    assert found["perplexity_cost"] == pytest.approx(found["perplexity"] / exact["perplexity"] - 1)
    low, high = found["perplexity_cost_interval"]
    assert low < found["perplexity_cost"] < high
    assert exact["bits_per_byte"] == pytest.approx(math.log2(exact["perplexity"]) * text.tokens / 360)


def test_intervals() -> None:
    assert intervals.share(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert intervals.share(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = intervals.mean(values.tolist())
    assert (low, high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.01)
    tops, bottoms = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]
    assert intervals.ratio(tops, bottoms) == pytest.approx((0.5, 0.5))  # the same draws for both


def test_drafts_are_counted_as_speculation_counts_them(folders: dict[str, Path]) -> None:
    """By one pass over the finished text, and by drafting for real, token by token."""
    large, small = LanguageModel(folders["llama"], "cpu"), LanguageModel(folders["galactica"], "cpu")
    prompt, accepted = ids(16), list[int]()
    text = list(large.write([prompt], 32, ends=())[0].ids)
    for place in range(0, 32, 3):  # a small model that is not always wrong
        if place % 2:
            text[place] = small.likeliest([[*prompt, *text[:place]]])[0][-1]
    best = small.likeliest([[*prompt, *text]])[0]
    counted = drafting.rounds([best[15 + place] == token for place, token in enumerate(text)])
    place = 0
    while place + 4 <= 32:
        draft = list(small.write([[*prompt, *text[:place]]], 4, ends=())[0].ids)
        right = [drafted == token for drafted, token in zip(draft, text[place : place + 4], strict=True)]
        accepted.append((*right, False).index(False))
        place += accepted[-1] + 1
    assert counted == accepted and sum(counted) > 0
    assert drafting.repeats([*range(8), 9, *range(8)]) and not drafting.repeats([*range(7), 9, *range(7)])


CODE = "@cached\ndef read_rows(path, *, depth=1):\n    # All of them.\n    rows = load(path)\n    return rows[:depth]\n"
FUNCTION = Function("read_rows", CODE, "Read the rows.")
PROMPT = '@cached\ndef read_rows(path, *, depth=1):\n    """Read the rows."""\n'


def test_headers_end_where_the_body_begins() -> None:
    assert functions.header(FUNCTION) == PROMPT
    wrapped = "def f(\n    a,\n    b,\n):\n    return a\n"
    assert functions.header(Function("f", wrapped, "")) == "def f(\n    a,\n    b,\n):\n"
    assert functions.header(Function("f", "def f(): return 1\n", "Say one.")) is None
    assert functions.header(Function("f", "not python", "")) is None


@pytest.mark.parametrize(
    ("written", "finished", "whole", "statements", "repeats"),
    (
        ("    a = 1\n    return a", False, False, 1, False),  # the last line may be unfinished
        ("    a = 1\n    return a", True, True, 2, False),
        ("    a = 1\n    return a\n", False, True, 2, False),
        ("    a = 1\n    return a\ndef other(", False, True, 2, False),  # what follows is not the function's
        ("    if a:\n        return 1\n    re", False, True, 2, False),
        ("    if a:\n    re", False, False, 0, False),
        ("    f(a)\n    f(a)\n\n    f(a)\n", False, True, 3, True),
        ("    f(a,\n)\n    g()\n    h(", False, True, 2, False),  # a bracket may close at the margin
        ("", True, False, 0, False),
        ("Nothing of the kind", False, False, 0, False),
    ),
)
def test_bodies_are_judged(written: str, finished: bool, whole: bool, statements: int, repeats: bool) -> None:
    body = functions.judge(PROMPT, written, finished)
    assert (body.whole, body.statements, body.repeats) == (whole, statements, repeats)


def test_holes_are_lines_of_the_body() -> None:
    for seed in range(20):
        made = functions.hole(FUNCTION, random.Random(seed))
        assert made is not None and f"{made.before}{made.line}\n{made.after}" == CODE.rstrip("\n")
        assert made.line == "    rows = load(path)"


def test_baselines_of_summaries() -> None:
    assert summaries.name_in_words(Function("_read_HTTPHeader2", "", "")) == "read http header 2"
    assert summaries.comment_or_line(FUNCTION) == "All of them."
    assert summaries.comment_or_line(Function("f", "def f(\n    a,\n):\n    return a\n", "")) == "return a"


def test_rouge_stems_and_counts() -> None:
    [found] = summaries.score(["Reads the rows of a table."], ["read rows"])
    assert found["rouge1"] == pytest.approx(2 * (2 / 2) * (2 / 6) / (2 / 2 + 2 / 6))
    assert found["rouge2"] == 0
