"""Streaming text: whatever the ids, pushes and flush give what decoding at once gives, and never half a character."""

from __future__ import annotations

import time
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allotrope import tokenizers
from allotrope.tokenizers import Tokenizer

# Byte-level BPE (three kinds), sentencepiece with byte fallback (two kinds), ranks.
FOLDERS = (
    "tokenizers/gpt2", "tokenizers/opt", "tokenizers/qwen2", "tokenizers/starcoder", "tokenizers/llama2",
    "stories260K", "tokenizers/qwen",
)  # fmt: skip
RANDOM = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TRICKY = "naïve 🦙🏽 e\u0301 日本語 नमस्ते\n\n  \ttabs 😶‍🌫️ \u2028 a  b"


@cache
def load(folder: Path) -> Tokenizer:
    return tokenizers.load(folder)


@pytest.fixture(params=FOLDERS)
def tokenizer(assets: Path, request: pytest.FixtureRequest) -> Tokenizer:
    return load(assets / request.param)


def streamed(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None, skip_special: bool = True) -> str:
    stream = tokenizer.stream(after or [], skip_special)
    return "".join([*map(stream.push, ids), stream.flush()])


@given(data=st.data())
@RANDOM
def test_random_ids_stream_as_they_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Beyond the vocabulary too: a model's embedding may have more rows than the tokenizer has tokens."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 50), max_size=40))
    for skip in (True, False):
        assert streamed(tokenizer, ids, skip_special=skip) == tokenizer.decode(ids, skip_special=skip)


# Sentencepiece reads U+2581 as a space, and StarCoder's vocabulary, as rebuilt, lacks the bytes beyond plane 2.
CHARACTERS = st.characters(max_codepoint=0x2FFFF, exclude_categories=("Cs",), exclude_characters="\u2581")


@given(text=st.text(CHARACTERS, max_size=40))
@RANDOM
def test_any_text_streams_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    """It comes back as it was, or in normal form C where the vocabulary normalises (both Qwens)."""
    stream = tokenizer.stream()
    pushed = "".join(map(stream.push, tokenizer.encode(text, allow_special=False)))
    assert pushed in (text, unicodedata.normalize("NFC", text))
    assert stream.flush() == ""


@given(data=st.data())
@RANDOM
def test_what_follows_a_prompt_is_the_rest_of_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = tokenizer.encode(TRICKY)
    cut = data.draw(st.integers(0, len(ids)))
    whole, stream = tokenizer.decode(ids), tokenizer.stream()
    prompt = "".join(map(stream.push, ids[:cut]))  # without a flush: the character at the cut belongs to what follows
    assert prompt + streamed(tokenizer, ids[cut:], after=ids[:cut]) == whole


def test_a_dangling_character_becomes_one_replacement(tokenizer: Tokenizer) -> None:
    llama = tokenizer.encode("🦙", special=False)
    if len(llama) < 2:
        pytest.skip("one token in this vocabulary")
    stream = tokenizer.stream()
    before = "".join(map(stream.push, llama[:-1]))
    assert before.strip() == ""
    assert stream.flush() == "\ufffd"
    assert tokenizer.decode(llama[:-1]).strip() == "\ufffd"


def test_half_a_character_waits_and_a_broken_one_does_not(assets: Path) -> None:
    """E2 82 AC is €. A byte that cannot continue it ends the waiting at once."""
    tokenizer = load(assets / "stories260K")
    stream = tokenizer.stream()
    byte = {value: value + 3 for value in range(256)}
    assert [stream.push(byte[value]) for value in (0x61, 0xE2, 0x82, 0xAC)] == ["a", "", "", "€"]
    assert [stream.push(byte[value]) for value in (0xE2, 0x82, 0x61)] == ["", "", "\ufffda"]
    assert [stream.push(byte[value]) for value in (0xFF, 0xC0)] == ["\ufffd", "\ufffd"]
    assert stream.flush() == ""


def test_prefix_space_is_dropped_once_and_only_at_the_start(assets: Path) -> None:
    tokenizer = load(assets / "tokenizers/llama2")
    hello, world = 15043, 3186  # ▁Hello ▁world
    assert streamed(tokenizer, [1, hello, world]) == "Hello world"
    assert streamed(tokenizer, [hello, world], after=[1]) == "Hello world"
    assert streamed(tokenizer, [world], after=[1, hello]) == " world"
    assert streamed(tokenizer, [1, hello], skip_special=False) == tokenizer.decode([1, hello], False) == "<s> Hello"
    assert tokenizer.decode(tokenizer.encode("  two")) == "  two"
    assert tokenizer.decode([29871, hello]) == " Hello"


def test_special_tokens_are_hidden_inside_a_character_too(assets: Path) -> None:
    tokenizer = load(assets / "tokenizers/qwen")
    first, *rest = tokenizer.encode("\U00012000")
    assert rest
    assert streamed(tokenizer, [first, 151645, *rest]) == "\U00012000"
    assert streamed(tokenizer, [first, 151645, *rest], skip_special=False).startswith("\ufffd<|im_end|>")


def test_decoding_agrees_with_the_tokenizers_library(assets: Path) -> None:
    """For ids of real text; for bytes that are no UTF-8 the library's byte fallback differs on purpose."""
    library = pytest.importorskip("tokenizers").Tokenizer
    for name in ("stories260K", "tokenizers/starcoder"):
        theirs = library.from_file(str(assets / name / "tokenizer.json"))
        ids = load(assets / name).encode(TRICKY, special=False)
        assert load(assets / name).decode(ids) == theirs.decode(ids)


def test_streaming_costs_the_same_per_token_however_long_the_text(assets: Path) -> None:
    tokenizer = load(assets / "tokenizers/qwen2")
    ids = tokenizer.encode((assets / "text" / "shakespeare.txt").read_text()[:120_000])
    ids = (ids * (1 + 40_000 // len(ids)))[:40_000]

    def seconds(count: int) -> float:
        stream = tokenizer.stream()
        begin = time.process_time()
        for token in ids[:count]:
            stream.push(token)
        return time.process_time() - begin

    seconds(len(ids))  # the pieces are made once
    short, long = min(seconds(10_000) for _ in range(3)), min(seconds(40_000) for _ in range(3))
    assert short < 0.2
    assert long < 10 * short
