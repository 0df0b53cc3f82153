"""Requests that are wrong, FAULTS 23 to 29: an error names field, value and bound, and the engine is as it was."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from allotrope.api import LLM, SamplingParams
from allotrope.errors import RequestError
from tests.engines import LLAMA, VOCAB, plan_of, random_weights, write

CANARY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, seed=1, logprobs=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("engine") / "llama"
    with LLM(write(folder, plan_of(LLAMA), random_weights(LLAMA)), threads=1, max_num_seqs=4) as llm:
        yield llm


@pytest.fixture
def llm(made: LLM) -> Iterator[LLM]:
    """After each case a canary is as it was before, and nothing is held."""
    before = made.generate("canary", CANARY)[0].outputs
    yield made
    assert made.generate("canary", CANARY)[0].outputs == before
    found = made.metrics()
    assert found["running"] == found["waiting"] == found["in_flight"] == found["pages_used"] == 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n": 10**9}, "n is 1000000000; it must be from 1 to 8"),
    ({"n": 0}, "n is 0; it must be from 1 to 8"),
    ({"max_tokens": -1}, "max_tokens is -1; it must be from 1 to 2147483647"),
    ({"max_tokens": 0}, "max_tokens is 0; it must be from 1"),
    ({"max_tokens": 10**12}, "max_tokens is 1000000000000; it must be from 1 to 2147483647"),
    ({"temperature": -1}, "temperature is -1; it must be from 0 to 100"),
    ({"temperature": math.nan}, "temperature is nan; it must be from 0 to 100"),
    ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
    ({"top_p": 2}, "top_p is 2; it must be above 0 and at most 1"),
    ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 to 1"),
    ({"logprobs": 10**6}, "logprobs is 1000000; it must be from 0 to 20"),
    ({"prompt_logprobs": 21}, "prompt_logprobs is 21; it must be from 0 to 20"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be from 1e-06 to 10"),
    ({"presence_penalty": 3}, "presence_penalty is 3; it must be from -2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty is -3; it must be from -2 to 2"),
    ({"min_tokens": 17}, "min_tokens is 17; it must be at most max_tokens, 16"),
    ({"beams": 17}, "beams is 17; it must be from 1 to 16"),
    ({"beams": 2, "n": 3, "temperature": 0}, "n is 3; with beams it must be at most their number, 2"),
    ({"beams": 2, "temperature": 1.0}, "temperature is 1; with beams it must be 0"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ({"logit_bias": {5: 101.0}}, "logit_bias.*101.*-100 to 100"),
    ({"logit_bias": {5: math.nan}}, "logit_bias.*nan.*-100 to 100"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias holds 1025.*at most 1024"),
    ({"stop": [""]}, r"stop\[0\] is 0 bytes long; it must be from 1 to 256"),
    ({"stop": ["x"] * 10_000}, "stop holds 10000 strings; it must hold at most 16"),
    ({"stop": "x" * 257}, r"stop\[0\] is 257 bytes long; it must be from 1 to 256"),
    ({"bad_words": ["x"] * 65}, "bad_words holds 65 strings; it must hold at most 64"),
    ({"stop_token_ids": list(range(1025))}, "stop_token_ids holds 1025 ids; it must hold at most 1024"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[f"{i}-{next(iter(g))}" for i, (g, _) in enumerate(WRONG)])
def test_parameters_out_of_bounds(llm: LLM, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        llm.generate("x", SamplingParams(**given))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("x", {"logit_bias": {VOCAB: 1.0}}, f"logit_bias is {VOCAB}; it must be from 0 to {VOCAB - 1}"),
        ("x", {"stop_token_ids": [5, VOCAB]}, rf"stop_token_ids\[1\] is {VOCAB}; it must be from 0 to {VOCAB - 1}"),
        ([5, VOCAB], {}, rf"prompt_token_ids\[1\] is {VOCAB}; it must be from 0 to {VOCAB - 1}"),
        ([[-1]], {}, r"prompt_token_ids\[0\] is -1; it must be from 0"),
        ("x" * 65, {}, "the prompt is 66 tokens long; the limit is 64"),
        ("x" * 2**20, {}, "1,048,576 bytes, more than 64 tokens can hold"),
        ("x", {"beams": 5, "temperature": 0}, "beams is 5; max_num_seqs allows 4"),
    ],
)
def test_what_this_engine_cannot_do(llm: LLM, prompt: Any, given: dict[str, Any], message: str) -> None:
    params = SamplingParams(**given)
    for ask in (llm.generate, llm.stream):
        with pytest.raises(RequestError, match=message):
            ask([prompt, "good"] if isinstance(prompt, str) else prompt, params)


def test_an_empty_prompt_is_the_beginning_of_a_text(llm: LLM) -> None:
    for empty in ("", [[]], {"prompt_token_ids": []}):
        assert llm.generate(empty, CANARY)[0].prompt_token_ids == (1,)


def test_an_output_is_clipped_to_the_context(llm: LLM) -> None:
    [output] = llm.generate([[5] * 60], SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4 and output.outputs[0].finish_reason == "length"


CHOICES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 1.3),
    "repetition_penalty": (1.0, 0.5, 10.0),
    "presence_penalty": (0.0, 2.0),
    "frequency_penalty": (0.0, -2.0),
    "logit_bias": (None, {2: 100.0, 7: -100.0}),
    "bad_words": ((), ("a", "bc")),
    "min_tokens": (0, 5),
    "n": (1, 3),
    "beams": (1, 2),
    "stop": ((), "x"),
    "top_k": (0, 1),
    "logprobs": (None, 20),
    "prompt_logprobs": (None, 20),
}


@pytest.mark.parametrize("names", list(itertools.combinations(CHOICES, 2)), ids="-".join)
def test_parameters_in_pairs_are_answered_or_refused_in_words(llm: LLM, names: tuple[str, str]) -> None:
    """Every pair of values: an answer of the right form, the same streamed, or an error that names one of the two."""
    answered = []
    for values in itertools.product(*(CHOICES[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        try:
            params = SamplingParams(**({"max_tokens": 6, "temperature": 0.7, "seed": 3} | given))
        except RequestError as error:
            if given.get("beams", 1) == 1 or "temperature is 0.7" not in str(error):
                assert any(re.search(rf"\b{name} is ", str(error)) for name in (*names, "temperature")), error
            continue
        answered.append(params)
    outputs = llm.generate(["pair"] * len(answered), answered)
    deltas = llm.stream(["pair"] * len(answered), answered)
    texts = dict[tuple[int, int], str]()
    for delta in deltas:
        texts[delta.index, delta.output] = texts.get((delta.index, delta.output), "") + delta.text
    for i, (output, params) in enumerate(zip(outputs, answered, strict=True)):
        assert output.error is None and len(output.outputs) == params.n
        for answer in output.outputs:
            assert params.min_tokens <= len(answer.token_ids) <= 6 and answer.finish_reason in ("stop", "length")
            assert texts[i, answer.index] == answer.text


def test_stop_strings_cut_inside_characters_and_tokens(llm: LLM) -> None:
    """A text of many-byte characters, forced byte by byte: never half a character, before the stop or streamed."""
    text = "né 🦊 日本 🦊!"
    ids = llm.tokenizer.encode(text)
    for stop in ("🦊", "é", "本 🦊!", "日本"):
        shown, spoken = "", forced(llm, ids, stop)
        for delta in spoken:
            shown += delta
            assert "\ufffd" not in delta
        assert shown == text[: text.index(stop)]


def forced(llm: LLM, ids: list[int], stop: str) -> Iterator[str]:
    """The pieces of text that a model which says exactly these tokens would give."""
    from allotrope.runtime.stops import TextStream

    stream = TextStream(llm.tokenizer.stream([]), (stop,))
    for token in ids:
        yield stream.push(token)
        if stream.found is not None:
            return
    yield stream.close()
