"""SamplingParams: every bound is checked at birth, and the message names field, value and bound."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from allotrope.errors import RequestError
from allotrope.runtime.request import Limits, new_request
from allotrope.runtime.sampling_params import SamplingParams

LIMITS = Limits(vocab=100, max_len=32, eos_ids=(2, 7))


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("max_tokens", 0, "1"),
        ("max_tokens", -1, "1"),
        ("max_tokens", 10**12, "2147483647"),
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("max_tokens", None, "whole number"),
        ("max_tokens", "16", "whole number"),
        ("temperature", -1, "0"),
        ("temperature", math.nan, "0 to 100"),
        ("temperature", math.inf, "100"),
        ("temperature", 10**400, "100"),
        ("temperature", "hot", "number"),
        ("top_k", -2, "-1"),
        ("top_k", 2**31, "2147483647"),
        ("top_k", 1.0, "whole number"),
        ("top_p", 0, "above 0"),
        ("top_p", 2, "at most 1"),
        ("top_p", math.nan, "at most 1"),
        ("min_p", -0.1, "0 to 1"),
        ("min_p", 1.01, "0 to 1"),
        ("seed", 2**63, str(2**63 - 1)),
        ("seed", 1.5, "whole number"),
        ("logprobs", 10**6, "20"),
        ("logprobs", -1, "0"),
        ("stop", ["x"] * 17, "16"),
        ("stop", [""], "1 to 256 bytes"),
        ("stop", "é" * 129, "256 bytes"),
        ("stop", ["x", "y\ud83d"], r"[1] is 'y\ud83d'; it must not hold half a surrogate pair"),
        ("stop", [3], "list of strings"),
        ("stop", {"a"}, "list of strings"),
        ("stop_token_ids", 5, "list of token ids"),
        ("stop_token_ids", "5", "list of token ids"),
        ("stop_token_ids", [-1], "0"),
        ("stop_token_ids", [1.0], "whole number"),
        ("stop_token_ids", range(2000), "1024"),
        ("ignore_eos", 1, "True or False"),
        ("skip_special_tokens", None, "True or False"),
        ("n", 0, "1 to 8"),
        ("n", 10**9, "1 to 8"),
        ("n", 1.0, "whole number from 1 to 8"),
        ("repetition_penalty", 0, "1e-06 to 10"),
        ("repetition_penalty", 10.5, "1e-06 to 10"),
        ("repetition_penalty", math.nan, "1e-06 to 10"),
        ("repetition_penalty", "1.1", "number from 1e-06 to 10"),
        ("presence_penalty", -2.1, "-2 to 2"),
        ("presence_penalty", math.inf, "-2 to 2"),
        ("frequency_penalty", 2.1, "-2 to 2"),
        ("frequency_penalty", None, "number from -2 to 2"),
        ("logit_bias", [5], "map token ids to numbers from -100 to 100"),
        ("logit_bias", "5", "map token ids"),
        ("logit_bias", (5,), "pairs of a token id and a number"),
        ("logit_bias", ((5, 1.0), (5, 2.0)), "at most once"),
        ("logit_bias", dict.fromkeys(range(1025), 1.0), "at most 1024"),
        ("bad_words", ["x"] * 65, "at most 64"),
        ("bad_words", [""], "1 to 256 bytes"),
        ("bad_words", ["x" * 257], "256 bytes"),
        ("bad_words", ["\ud800"], r"[0] is '\ud800'; it must not hold half a surrogate pair"),
        ("bad_words", 5, "list of strings"),
        ("min_tokens", -1, "0 to 2147483647"),
        ("min_tokens", 17, "at most max_tokens, 16"),
        ("min_tokens", 0.5, "whole number"),
        ("prompt_logprobs", 21, "0 to 20"),
        ("prompt_logprobs", True, "whole number from 0 to 20"),
        ("beams", 0, "1 to 16"),
        ("beams", 17, "1 to 16"),
        ("length_penalty", 10.1, "-10 to 10"),
        ("length_penalty", math.nan, "-10 to 10"),
        ("early_stopping", "always", 'True, False or "never"'),
        ("early_stopping", 1, 'True, False or "never"'),
        ("early_stopping", None, 'True, False or "never"'),
    ],
)
def test_out_of_bounds(field: str, value: object, bound: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert message.startswith(field)
    assert bound in message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({-1: 1.0}, r"^an id in logit_bias is -1; it must be from 0 to 2147483647"),
        ({"5": 1.0}, r"^an id in logit_bias is '5'; it must be a whole number"),
        ({True: 1.0}, r"^an id in logit_bias is True; it must be a whole number"),
        ({5: 101}, r"^logit_bias\[5\] is 101; it must be from -100 to 100"),
        ({5: math.nan}, r"^logit_bias\[5\] is nan; it must be from -100 to 100"),
        ({5: None}, r"^logit_bias\[5\] is None; it must be a number from -100 to 100"),
    ],
)
def test_biases_out_of_bounds(bias: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(logit_bias=bias)


BEAMS = {"beams": 4, "temperature": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (BEAMS | {"n": 5}, r"^n is 5; with beams it must be at most their number, 4"),
        (BEAMS | {"temperature": 0.7}, r"^temperature is 0.7; with beams it must be 0"),
        ({"beams": 2}, r"^temperature is 1; with beams it must be 0"),
        (BEAMS | {"top_k": 3}, r"^top_k is 3; with beams it must be 0"),
        (BEAMS | {"top_p": 0.5}, r"^top_p is 0.5; with beams it must be 1"),
        (BEAMS | {"min_p": 0.5}, r"^min_p is 0.5; with beams it must be 0"),
        (BEAMS | {"repetition_penalty": 1.5}, r"^repetition_penalty is 1.5; with beams it must be 1"),
        (BEAMS | {"presence_penalty": -1}, r"^presence_penalty is -1; with beams it must be 0"),
        (BEAMS | {"frequency_penalty": 1}, r"^frequency_penalty is 1; with beams it must be 0"),
        (BEAMS | {"min_tokens": 1}, r"^min_tokens is 1; with beams it must be 0"),
        (BEAMS | {"logit_bias": {5: 1}}, r"^logit_bias is .*; with beams it must be empty"),
        (BEAMS | {"bad_words": ["x"]}, r"^bad_words is .*; with beams it must be empty"),
        (BEAMS | {"stop": ["x"]}, r"^stop is .*; with beams it must be empty"),
        (BEAMS | {"logprobs": 3}, r"^logprobs is 3; with beams it must be 0 or None"),
        ({"n": 2, "temperature": 0}, r"^n is 2; at temperature 0 it must be 1"),
        ({"length_penalty": 0.5}, r"^length_penalty is 0.5; without beams it must be 1.0"),
        ({"early_stopping": True}, r"^early_stopping is True; without beams it must be False"),
        ({"early_stopping": "never"}, r"^early_stopping is 'never'; without beams it must be False"),
    ],
    ids=str,
)
def test_contradictions_are_refused_in_words(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**given)


def test_every_field_has_its_bounds() -> None:
    """Nothing at all is accepted unchecked: an object of a foreign type is refused by every field, by its name."""
    for field in dataclasses.fields(SamplingParams):
        with pytest.raises(RequestError, match=rf"^{field.name} is .*; it must "):
            SamplingParams(**{field.name: object()})


def test_the_value_is_named_and_short() -> None:
    with pytest.raises(RequestError, match=r"temperature is -1; it must be from 0 to 100"):
        SamplingParams(temperature=-1)
    with pytest.raises(RequestError) as caught:
        SamplingParams(max_tokens=10**5000)
    assert len(str(caught.value)) < 200


def test_accepted_and_normalised() -> None:
    params = SamplingParams(
        stop="END", stop_token_ids=[3, np.int64(4)], top_k=-1, temperature=np.float32(0.5), max_tokens=np.int32(3)
    )
    assert params.stop == ("END",)
    assert params.stop_token_ids == (3, 4)
    assert params.top_k == 0
    assert (params.temperature, params.max_tokens) == (0.5, 3)
    assert type(params.max_tokens) is int and type(params.temperature) is float
    assert math.copysign(1, SamplingParams(temperature=-0.0).temperature) == 1
    assert SamplingParams(top_p=1, min_p=1, seed=-(2**63), logprobs=20).logprobs == 20
    assert hash(params) != hash(SamplingParams())
    full = SamplingParams(
        n=np.int64(8), repetition_penalty=10, presence_penalty=-2, frequency_penalty=2, logit_bias={9: 1, 3: -100},
        bad_words=["a", "b"], min_tokens=16, prompt_logprobs=20,
    )  # fmt: skip
    assert full.logit_bias == ((3, -100.0), (9, 1.0)) and full.bad_words == ("a", "b") and type(full.n) is int
    assert dataclasses.replace(full, seed=3).logit_bias == full.logit_bias and len({full, params}) == 2
    assert SamplingParams(logit_bias={}) == SamplingParams()
    assert SamplingParams(beams=16, n=16 // 2, temperature=0, length_penalty=-10, early_stopping="never").n == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.top_p, params.min_p) == (16, 1.0, 1.0, 0.0)


def test_a_request_is_checked_against_the_engine() -> None:
    params = SamplingParams()
    with pytest.raises(RequestError, match=r"33 tokens long; the limit is 32"):
        new_request(1, [1] * 33, params, LIMITS)
    with pytest.raises(RequestError, match=r"prompt_token_ids\[1\] is 100; it must be from 0 to 99"):
        new_request(1, [5, 100], params, LIMITS)
    with pytest.raises(RequestError, match=r"prompt_token_ids\[0\] is -1"):
        new_request(1, [-1], params, LIMITS)
    with pytest.raises(RequestError, match=r"prompt_token_ids\[0\] is 1.5"):
        new_request(1, [1.5], params, LIMITS)  # type: ignore[list-item]
    with pytest.raises(RequestError, match="no token"):
        new_request(1, [], params, LIMITS)
    with pytest.raises(RequestError, match=r"stop_token_ids\[0\] is 100"):
        new_request(1, [1], SamplingParams(stop_token_ids=[100]), LIMITS)
    with pytest.raises(RequestError, match=r"an id in logit_bias is 100; it must be from 0 to 99"):
        new_request(1, [1], SamplingParams(logit_bias={99: 1, 100: 1}), LIMITS)


def test_output_is_clipped_to_the_engines_length() -> None:
    params = SamplingParams(max_tokens=1000)
    assert new_request(1, [1] * 10, params, LIMITS).max_tokens == 22
    full = new_request(1, [1] * 32, params, LIMITS)
    assert (full.max_tokens, full.positions) == (1, 32)
    assert new_request(1, [1] * 31, SamplingParams(max_tokens=1), LIMITS).max_tokens == 1


def test_seeds_and_stop_tokens() -> None:
    seeds = {new_request(i, [1], SamplingParams(), LIMITS).seed for i in range(20)}
    assert len(seeds) == 20 and all(0 <= seed < 2**63 for seed in seeds)
    assert new_request(1, [1], SamplingParams(seed=5), LIMITS).seed == 5
    assert new_request(1, [1], SamplingParams(stop_token_ids=[9]), LIMITS).stop_ids == {2, 7, 9}
    assert new_request(1, [1], SamplingParams(stop_token_ids=[9], ignore_eos=True), LIMITS).stop_ids == {9}
