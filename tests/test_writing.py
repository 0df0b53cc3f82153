"""Greedy texts: many prompts at a time, of both sides, say what each alone does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from allotrope import tokenizers
from allotrope.eval.writing import by_engine, by_original, spelled
from allotrope.hw.detect import detect
from allotrope.models.model import open_model
from allotrope.runtime.opening import open_folder
from allotrope.runtime.options import RuntimeOptions
from allotrope.verify.original import oracle
from tests.tiny import VOCAB, tiny
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS, LIMITS = (1, 17, 5, 30, 9, 2, 23), (12, 3, 12, 7, 12, 1, 12)
KINDS = (
    "gpt2",
    "opt",
    "opt-350m",
    "galactica",
    "llama",
    "llama-dynamic",
    "qwen",
    "decicoder",
    "mistral",
    "qwen2",
    "qwen3",
)


def prompts(vocab: int) -> list[list[int]]:
    source = np.random.default_rng(3)
    return [source.integers(3, vocab, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_says_what_each_prompt_says_alone(kind: str, tmp_path: Path) -> None:
    """Learned positions count from a prompt's own beginning, and nobody sees the padding."""
    tiny(kind, tmp_path / "model")
    original = oracle(open_model(tmp_path / "model"), "fp32", detect("cpu"))
    asked = prompts(VOCAB)
    together = by_original(original, asked, LIMITS, frozenset(), batch=4)
    alone = [
        by_original(original, [ids], [most], frozenset(), batch=1).ids[0]
        for ids, most in zip(asked, LIMITS, strict=True)
    ]
    assert list(together.ids) == alone
    assert [len(text) for text in together.ids] == list(LIMITS)
    step = original.follow(asked[3], list(together.ids[3][:-1]))  # and what the oracle itself says of that text
    assert step[len(asked[3]) - 1 :].argmax(-1).tolist() == list(together.ids[3])


def test_what_ends_a_text(tmp_path: Path) -> None:
    tiny("gpt2", tmp_path / "model")
    original, asked = oracle(open_model(tmp_path / "model"), "fp32", detect("cpu")), prompts(VOCAB)
    free = by_original(original, asked, [12] * 7, frozenset(), batch=7)
    stop = free.ids[0][4]
    ended = by_original(original, asked, [12] * 7, frozenset([stop]), batch=7)
    for whole, text in zip(free.ids, ended.ids, strict=True):
        place = whole.index(stop) + 1 if stop in whole else 12
        assert text == whole[:place]
    heard = list[int]()
    short = by_original(
        original, asked, [12] * 7, frozenset(), batch=3, enough=lambda ids: len(ids) == 5, done=heard.append
    )
    assert short.ids == tuple(text[:5] for text in free.ids) and heard == [3, 3, 1]


@pytest.mark.parametrize("kind", ("gpt2", "llama"))
def test_the_engine_says_the_same(kind: str, forge: Forge) -> None:
    path = forge.built(kind)
    opened = open_folder(path, RuntimeOptions(threads=1, max_num_seqs=3))
    try:
        original = oracle(open_model(opened.engine.manifest.source["path"]), "fp32", detect("cpu"))
        asked = prompts(opened.limits.vocab)
        ours = by_engine(opened, asked, LIMITS)
        theirs = by_original(original, asked, LIMITS, frozenset(opened.limits.eos_ids), batch=3)
        assert ours.ids == theirs.ids and ours.tokens == sum(map(len, ours.ids)) and ours.seconds > 0
    finally:
        opened.executor.close()


def test_a_text_is_spelled_as_it_follows_its_prompt() -> None:
    words = tokenizers.load(Path(__file__).parents[1] / "models" / "docsum", 4096)
    asked, said = words.encode("def f(x):"), words.encode(" return x", special=False)
    whole = spelled(words, asked, [*said, 2])
    assert words.decode([*asked, *said]) == "def f(x):" + whole and whole.startswith(" ")
    assert not spelled(words, [], said).startswith(" " * 2)
