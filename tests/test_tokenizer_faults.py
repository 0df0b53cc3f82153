"""Tokenizer files that lie, break off or mean harm: each gets one line that names the file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allotrope import tokenizers
from allotrope.errors import RequestError, TokenizerError, UsageError
from allotrope.tokenizers import tokenizer_json
from tests.test_tokenizers import load, save, write_ranks


def small(**changes: object) -> dict[str, object]:
    """A valid little tokenizer.json, with some of its parts replaced."""
    vocab = {"a": 0, "b": 1, "ab": 2}
    added = [{"id": 3, "content": "<end>", "special": True}]
    for token in added:
        token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    } | changes  # fmt: skip


def split_on(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def test_the_small_file_is_sound(tmp_path: Path) -> None:
    tokenizer = tokenizers.load(save(tmp_path, tokenizer=small(pre_tokenizer=split_on("b+|a"))))
    assert tokenizer.encode("ab<end>b") == [0, 1, 3, 1]


GAP = {"id": 5, "content": "<x>", "special": True, "normalized": False}
NO_TOKEN = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": split_on("((((")}, "the tokenizers library refuses it"),
        ({"pre_tokenizer": split_on("a" * 20_000)}, "a pattern is longer than 10,000 characters"),
        ({"added_tokens": [GAP]}, r"'<x>' has id 5, but the one that follows is 3; an added token is missing"),
        ({"added_tokens": [{"id": 1 << 40}]}, "an added token's id is 1099511627776"),
        ({"decoder": "x"}, "decoder is no object"),
        ({"decoder": {"type": "CTC"}}, "decoder step 'CTC' is not supported here"),
        ({"post_processor": NO_TOKEN}, "its post-processor is malformed"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "q"]]}}, "merge 1 needs 'q', which is no token"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "'a' is no merge"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "two tokens have the same id"),
        ({"model": {"type": "BPE", "vocab": {"a": 1 << 31}, "merges": []}}, "the id of 'a' is 2147483648"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
        ({"model": {"type": "Python"}}, "model is none of BPE"),
        ({"model": None}, "model is none of BPE"),
    ],
)
def test_a_bad_tokenizer_json_gets_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizers.load(save(tmp_path, tokenizer=small(**changes)))
    assert str(caught.value).startswith("tokenizer.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b"\xff{}", "is not JSON"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_what_is_not_even_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        tokenizers.load(tmp_path)


def test_ten_million_merges_and_huge_files_are_refused_before_parsing(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b'{"model":{"type":"BPE","vocab":{},"merges":[' + b'"a b",' * 10_000_000 + b'"a b"]}}')
    begin = time.perf_counter()
    with pytest.raises(TokenizerError, match=r"about 10,000,00\d entries is more than the 6,000,000 allowed"):
        tokenizers.load(tmp_path)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match=r"1,099,511,627,776 bytes is more than the 67,108,864"):
        tokenizers.load(tmp_path)
    assert time.perf_counter() - begin < 5


def test_a_pattern_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_json, "PROBE_SECONDS", 1.5)
    pattern = "^(?:a|a|aa)+$|^(a|aa)+b$"
    with pytest.raises(TokenizerError, match=r"takes more than 1\.5 s on a short text|refuses it"):
        tokenizers.load(save(tmp_path, tokenizer=small(pre_tokenizer=split_on(pattern))))


def test_merges_and_vocabularies_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path, vocab={"a": 0, "b": 1})
    for merges, message in (
        ("a b\n", r"merges\.txt: merge 1 needs 'ab', which is no token"),
        ("#version: 0.2\nab\n", r"merges\.txt: line 2 is no pair of tokens"),
        ("a b c\n", "line 1 is no pair"),
        ("a b\n" * 2_000_001, "2,000,001 merges is more than the 2,000,000 allowed"),
    ):
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(TokenizerError, match=message):
            tokenizers.load(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    save(tmp_path, tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    with pytest.raises(TokenizerError, match="tokenizer_class 'CLIPTokenizer' cannot be built"):
        tokenizers.load(tmp_path)


def test_rank_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    path, singles = tmp_path / "qwen.tiktoken", [bytes((byte,)) for byte in range(256)]
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: write_ranks(path, singles[1:]), "byte 0 has no rank"),
        (lambda: write_ranks(path, [*singles, b"a"]), "line 257 repeats a token"),
        (lambda: write_ranks(path, singles, first=3), "line 1 repeats a token or breaks the count"),
        (lambda: path.write_bytes(b"?? 0\n"), 'line 1 is not "base64 rank"'),
        (lambda: path.write_bytes(b"YQ== 0\n" * 1_000_001), "1,000,001 ranks is more than the 1,000,000"),
    ]
    for write, message in cases:
        write()
        with pytest.raises(TokenizerError, match=message):
            tokenizers.load(tmp_path)
    path.rename(tmp_path / "other.tiktoken")
    save(tmp_path, tokenizer_config={"tokenizer_class": "OtherTokenizer"})
    with pytest.raises(TokenizerError, match="how 'OtherTokenizer' cuts text is not known"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model", "is no sentencepiece model"),
        (b"", "is no sentencepiece model"),
        (b"IQ== 0\nIg== 1\n", "is a list of BPE ranks"),
    ],
)
def test_models_that_are_not_sentencepiece(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"^tokenizer\.model: {message}"):
        tokenizers.load(tmp_path)


def test_a_truncated_sentencepiece_model(assets: Path, tmp_path: Path) -> None:
    data = (assets / "tokenizers/llama2/tokenizer.model").read_bytes()
    for size in (1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
            tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config", {"add_bos_token": "yes"}, r"add_bos_token is 'yes', not true or false"),
        ("tokenizer_config", {"eos_token": "<nowhere>"}, r"'<nowhere>' is not in the vocabulary"),
        ("tokenizer_config", {"eos_token": 7}, "eos_token is 7, not a token"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder is"),
        ("tokenizer_config", {"added_tokens_decoder": {"9": {"content": "<n>"}}}, "should have id 9 but would get 4"),
        ("tokenizer_config", {"chat_template": 3}, "chat_template is 3, not a template"),
        ("tokenizer_config", {"chat_template": "x" * 300_000}, "longer than 262,144 bytes"),
        ("special_tokens_map", {"additional_special_tokens": "abc"}, "not a list of tokens"),
        ("added_tokens", {"<n>": "4"}, "<n> is '4', not a token id"),
        ("generation_config", {"eos_token_id": [1, "2"]}, "eos_token_id is .*, not a token id or a list"),
        ("config", {"bos_token_id": 1 << 40}, "bos_token_id is 1099511627776, not a token id"),
    ],
)
def test_settings_of_the_wrong_type_name_the_key(
    tmp_path: Path, name: str, content: dict[str, object], message: str
) -> None:
    save(tmp_path, tokenizer=small(), **{name: content})
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizers.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_ids_beyond_the_models_vocabulary(assets: Path, tmp_path: Path) -> None:
    assert tokenizers.load(assets / "tokenizers/gpt2", vocab_size=50257).vocab_size == 50257
    with pytest.raises(TokenizerError, match=r"ids up to 50,256, but the model's vocabulary ends at 50,255"):
        tokenizers.load(assets / "tokenizers/gpt2", vocab_size=50256)
    save(tmp_path, tokenizer=small(), config={"bos_token_id": 9, "eos_token_id": [9, 2]})
    found = tokenizers.load(tmp_path, vocab_size=8)
    assert (found.bos_id, found.eos_ids) == (None, (2,)), "the config's ids, unlike the file's, may be beyond it"


def test_requests_out_of_bounds(assets: Path) -> None:
    tokenizer = load(assets / "tokenizers/gpt2")
    with pytest.raises(RequestError, match="half a surrogate pair at character 2"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(RequestError, match="token id -1 is negative"):
        tokenizer.decode([1, -1])
    with pytest.raises(UsageError, match="no chat template; give the prompt as plain text"):
        tokenizer.chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode([15496, 60_000]) == "Hello"
    assert tokenizer.decode(tokenizer.encode("a\x00\x1b\r\n\ufeff")) == "a\x00\x1b\r\n\ufeff"


@pytest.mark.parametrize(("name", "value"), [("tools", [{"name": "f"}]), ("variables", {"mood": "x"})])
def test_what_chatml_has_no_place_for_is_refused(assets: Path, name: str, value: Any) -> None:
    reader = tokenizers.load(assets / "tokenizers/qwen")
    with pytest.raises(RequestError, match=f"{name} are given; this model's own format has no place for them"):
        reader.chat_ids([{"role": "user", "content": "x"}], **{name: value})
