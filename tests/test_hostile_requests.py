"""Requests, refs and threads that mean harm, or might as well: one typed error each, and the engine as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allotrope.api import LLM, SamplingParams
from allotrope.errors import AllotropeError, RequestError, UsageError
from tests.engines import LLAMA, plan_of, random_weights, write

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("engine") / "llama", plan_of(LLAMA), random_weights(LLAMA))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=1, max_num_seqs=4, max_batched_tokens=32) as made:
        yield made


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * 10_000_000, r"the text has 10,000,000 bytes, more than 64 tokens can hold; shorten the prompt"),
        ("é" * 40_000, r"the text has 80,000 bytes, more than 64 tokens can hold"),
        ([10**5000], r"prompt_token_ids\[0\] is an integer of 16610 bits; it must be from 0 to 299"),
        ([[[10**5000]]], r"prompt_token_ids\[0\] is a list that holds an endless number"),
        ("\ud800", "half a surrogate pair at character 0"),
    ],
)
def test_prompts_are_refused_quickly_and_change_nothing(llm: LLM, prompt: Any, message: str) -> None:
    canary = llm.generate([[5, 6, 7]], GREEDY)[0].outputs[0].token_ids
    began = time.monotonic()
    with pytest.raises(RequestError, match=message) as caught:
        llm.generate(prompt, GREEDY)
    assert time.monotonic() - began < 1 and len(str(caught.value)) < 300
    assert llm.generate([[5, 6, 7]], GREEDY)[0].outputs[0].token_ids == canary


def test_a_text_that_might_fit_is_read(llm: LLM) -> None:
    """Nothing is refused by its bytes that could fit by its tokens."""
    llm.tokenizer.limit(10**6)
    assert len(llm.tokenizer.encode("x" * 70_000)) >= 70_000


def test_endless_stop_tokens() -> None:
    with pytest.raises(RequestError, match="stop_token_ids holds 1000000000000 ids; it must hold at most 1024"):
        SamplingParams(stop_token_ids=range(10**12))
    assert SamplingParams(stop_token_ids=range(3)).stop_token_ids == (0, 1, 2)
    with pytest.raises(RequestError, match=r"stop_token_ids is .*generator"):
        SamplingParams(stop_token_ids=(token for token in ()))  # type: ignore[arg-type]


def test_a_stream_of_a_closed_engine_ends_in_words(folder: Path) -> None:
    llm = LLM(folder, threads=1)
    stream = llm.stream([[5, 6]], GREEDY)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(UsageError, match="the engine has been closed; open it again"):
        next(stream)


def test_threads_share_an_engine(llm: LLM) -> None:
    """Steps of one thread advance the others' requests; nobody loses a token, a text or its end."""
    wanted = [llm.generate([[5, i]], GREEDY)[0].outputs[0] for i in range(4)]
    wrong: list[object] = []

    def generate(i: int) -> None:
        for _ in range(6):
            try:
                got = llm.generate([[5, i]], GREEDY)[0].outputs[0]
                deltas = list(llm.stream([[5, i]], GREEDY))
            except Exception as error:
                wrong.append(error)
                raise
            text = "".join(delta.text for delta in deltas)
            if (got.token_ids, got.text, text) != (wanted[i].token_ids, wanted[i].text, wanted[i].text):
                wrong.append((i, got.text, text))

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not llm._loop.busy


@pytest.mark.parametrize("ref", [None, 5, b"x", ["a"], "n" * 5000, "\0", "\ud800", "http://a.b/c", ""])
def test_refs_that_are_none(ref: Any) -> None:
    with pytest.raises(AllotropeError) as caught:
        LLM(ref)
    assert caught.value.exit_code == 2 and str(caught.value).isprintable() and len(str(caught.value)) < 6000
