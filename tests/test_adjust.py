"""What changes a request's logits, against its definition computed anew from all tokens each time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allotrope.runtime.adjust import Adjuster, BadWords, bad_word_ids
from allotrope.runtime.sampling_params import SamplingParams

VOCAB = 12
Changes = dict[int, tuple[float, float]]
tokens_st = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def naive(
    params: SamplingParams,
    stop_ids: set[int],
    bad: BadWords,
    prompt: Sequence[int],
    output: Sequence[int],
    vocab: int = VOCAB,
) -> Changes:
    """divide and add of every token of the vocabulary whose logit is changed, as the penalties are defined."""
    found, counts = {}, Counter(output)
    bias = dict(params.logit_bias or ())
    for token in range(vocab):
        divide = params.repetition_penalty if token in prompt or token in output else 1.0
        penalty = params.presence_penalty * bool(counts[token]) + params.frequency_penalty * counts[token]
        add = bias.get(token, 0.0) - penalty
        whole = [*prompt, *output]
        for word in bad:
            if word[-1] == token and tuple(whole[len(whole) - len(word) + 1 :]) == word[:-1]:
                add = -np.inf
        if token in stop_ids and len(output) < params.min_tokens:
            add = -np.inf
        divide, add = float(np.float32(divide)), float(np.float32(add))
        if divide != 1 or add != 0:
            found[token] = (divide, add)
    return found


def changes(adjuster: Adjuster) -> Changes:
    tokens, divide, add = adjuster.entries()
    assert tokens.dtype == np.int32 and divide.dtype == add.dtype == np.float32
    assert len(set(tokens.tolist())) == len(tokens) == len(divide) == len(add)
    pairs = zip(divide.tolist(), add.tolist(), strict=True)
    return {token: pair for token, pair in zip(tokens.tolist(), pairs, strict=True) if pair != (1, 0)}


@settings(max_examples=400, deadline=None)
@given(
    prompt=tokens_st.filter(bool),
    output=tokens_st,
    repetition=st.sampled_from([1.0, 1.3, 0.5]),
    presence=st.sampled_from([0.0, 0.7, -1.0]),
    frequency=st.sampled_from([0.0, 0.1, -2.0]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -0.3, 5.0]), max_size=4),
    bad=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    stop_ids=st.sets(st.integers(0, VOCAB - 1), max_size=3),
    min_tokens=st.integers(0, 6),
)
def test_it_is_the_definition_after_every_token(  # type: ignore[no-untyped-def]
    prompt, output, repetition, presence, frequency, bias, bad, stop_ids, min_tokens
) -> None:
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=min_tokens,
    )
    adjuster = Adjuster(params, stop_ids, bad, prompt)
    kept = []
    for i, token in enumerate([*output, None]):
        expected = naive(params, stop_ids, bad, prompt, output[:i])
        assert changes(adjuster) == expected
        kept.append((adjuster.entries(), [part.copy() for part in adjuster.entries()]))
        if token is not None:
            before = adjuster.needs_tokens
            adjuster.push(token)
            if not before:  # it said that the token would not matter
                assert changes(adjuster) == expected and not adjuster.needs_tokens
    for given_out, copies in kept:  # a step in flight still reads what it was given
        assert all(np.array_equal(one, copy) for one, copy in zip(given_out, copies, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5, "repetition_penalty": 0.7},
        {"logit_bias": {token: token / 10 for token in range(500)}},
        {"logit_bias": dict.fromkeys(range(64), 1.0), "repetition_penalty": 1.3},
        {"min_tokens": 100, "max_tokens": 200},
    ],
)
def test_it_makes_room_for_any_number_of_tokens(given: dict[str, Any]) -> None:
    params, vocab = SamplingParams(**given), 700
    stop_ids, bad = set(range(200)), tuple((token, token + 1) for token in range(0, 64, 2))
    adjuster, output = Adjuster(params, stop_ids, bad, [3, 4]), list[int]()
    for token in (7 * i % vocab for i in range(400)):
        adjuster.push(token)
        output.append(token)
        if token % 3 == 0:
            assert changes(adjuster) == naive(params, stop_ids, bad, [3, 4], output, vocab)


def test_who_needs_the_drawn_tokens() -> None:
    def needs(bad: BadWords = (), **given: object) -> bool:
        return Adjuster(SamplingParams(**given), {2}, bad, [1, 2, 3]).needs_tokens  # type: ignore[arg-type]

    assert not needs()
    assert not needs(logit_bias={5: 1.0})
    assert not needs(((7,),))
    assert needs(((7, 8),))
    assert needs(repetition_penalty=1.1)
    assert needs(presence_penalty=0.1)
    assert needs(frequency_penalty=-0.1)
    assert needs(min_tokens=1)
    patient = Adjuster(SamplingParams(min_tokens=2), {2}, (), [1])
    assert [patient.needs_tokens, patient.push(5), patient.needs_tokens, patient.push(5), patient.needs_tokens] == [
        True, None, True, None, False,
    ]  # fmt: skip
    assert not Adjuster(SamplingParams(min_tokens=2), set(), (), [1]).needs_tokens


def test_bad_words_are_banned_as_a_tokenizer_spells_them() -> None:
    vocabulary = {"a": 1, " a": 2, "b": 3, " ": 4, "c": 5, " c": 6, "d": 7}

    def encode(text: str) -> list[int]:
        found = []
        while text:
            piece = max((piece for piece in vocabulary if text.startswith(piece)), key=len)
            found.append(vocabulary[piece])
            text = text[len(piece) :]
        return found

    assert bad_word_ids(["a"], encode) == ((1,), (2,))
    assert bad_word_ids([" a"], encode) == ((1,), (2,))
    assert bad_word_ids(["ab"], encode) == ((1, 3), (2, 3))
    assert bad_word_ids(["b"], encode) == ((3,),)  # after a space it is " ", "b": the same last token
    assert bad_word_ids(["a", "a", "cd"], encode) == ((1,), (2,), (5, 7), (6, 7))
    assert bad_word_ids([" "], encode) == ((4,),)
    assert bad_word_ids([], encode) == ()


def test_a_word_may_begin_in_the_prompt() -> None:
    adjuster = Adjuster(SamplingParams(), (), ((4, 5, 6),), [9, 4])
    assert changes(adjuster) == {}
    adjuster.push(5)
    assert changes(adjuster) == {6: (1.0, -np.inf)}
    adjuster.push(1)
    assert changes(adjuster) == {}


def test_many_tokens_take_little_time() -> None:
    """All penalties, 64 bad words and 1,000 different tokens known: a token and its entries within 0.2 ms."""
    random = np.random.default_rng(0)
    params = SamplingParams(repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.1, min_tokens=3)
    words = tuple(tuple(random.integers(0, 50_000, 3).tolist()) for _ in range(64))
    adjuster = Adjuster(params, set(range(8)), words, random.integers(0, 50_000, 800).tolist())
    drawn, taken = random.integers(0, 50_000, 400).tolist(), []
    for token in drawn:
        start = time.perf_counter()
        adjuster.push(token)
        adjuster.entries()
        taken.append(time.perf_counter() - start)
    assert len(adjuster.entries()[0]) > 1000
    assert np.median(taken) < 2e-4
