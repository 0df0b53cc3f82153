"""SamplingParams: every bound is checked at birth, and the message names field, value and bound."""

from __future__ import annotations

import dataclasses
import math

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
        ("stop", [3], "list of strings"),
        ("stop", {"a"}, "list of strings"),
        ("stop_token_ids", 5, "list of token ids"),
        ("stop_token_ids", "5", "list of token ids"),
        ("stop_token_ids", [-1], "0"),
        ("stop_token_ids", [1.0], "whole number"),
        ("stop_token_ids", range(2000), "1024"),
        ("ignore_eos", 1, "True or False"),
        ("skip_special_tokens", None, "True or False"),
    ],
)
def test_out_of_bounds(field: str, value: object, bound: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert message.startswith(field)
    assert bound in message
    assert "\n" not in message and len(message) < 300


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
