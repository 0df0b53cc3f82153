"""How a request's tokens are drawn and when it ends: one immutable record, checked at birth."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from allotrope.errors import RequestError

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 1024
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 100.0
MAX_COUNT = 2**31 - 1  # steps carry counts and token ids as int32
SEEDS = (-(2**63), 2**63 - 1)  # and seeds as int64


@dataclass(frozen=True)
class SamplingParams:
    """Names and defaults as vLLM's users know them. A value out of bounds is a RequestError.

    The filters apply in this order: temperature, top_k, top_p, min_p. Lists are kept as tuples.
    """

    max_tokens: int = 16  # clipped where prompt and output would exceed the engine's length
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 and -1 are off
    top_p: float = 1.0  # 1 is off
    min_p: float = 0.0  # 0 is off
    seed: int | None = None  # None: a fresh random one, recorded in the output
    stop: Sequence[str] = ()  # one string or several
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # how many of the likeliest tokens to report beside the drawn one
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "max_tokens": _count("max_tokens", self.max_tokens, 1, MAX_COUNT),
            "temperature": _real("temperature", self.temperature, 0.0, MAX_TEMPERATURE),
            "top_k": max(_count("top_k", self.top_k, -1, MAX_COUNT), 0),
            "top_p": _real("top_p", self.top_p, 0.0, 1.0, open_low=True),
            "min_p": _real("min_p", self.min_p, 0.0, 1.0),
            "stop": _stops(self.stop),
            "stop_token_ids": _token_ids(self.stop_token_ids),
        }
        if self.seed is not None:
            checked["seed"] = _count("seed", self.seed, *SEEDS)
        if self.logprobs is not None:
            checked["logprobs"] = _count("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {show(getattr(self, name))}; it must be True or False")


def show(value: Any) -> str:
    """The value for a message, cut so that a hostile one cannot fill a log."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of over 4300 digits, nor a list that holds one
        return f"a {type(value).__name__} that holds an endless number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _count(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} is {show(value)}; it must be a whole number from {low} to {high}")
    number = int(value)
    if not low <= number <= high:
        raise RequestError(f"{name} is {show(number)}; it must be from {low} to {high}")
    return number


def _real(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    bound = f"above {low:g} and at most {high:g}" if open_low else f"from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name} is {show(value)}; it must be a number {bound}")
    try:
        number = float(value)
    except OverflowError:  # a huge integer
        number = math.inf
    if not low <= number <= high or (open_low and number == low):  # NaN is in no interval
        raise RequestError(f"{name} is {show(value)}; it must be {bound}")
    return abs(number)  # no negative zero


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise RequestError(f"stop is {show(value)}; it must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop holds {len(stops)} strings; it must hold at most {MAX_STOPS}")
    for i, stop in enumerate(stops):
        size = len(stop.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= MAX_STOP_BYTES:
            raise RequestError(f"stop[{i}] is {size} bytes long; it must be from 1 to {MAX_STOP_BYTES} bytes")
    return tuple(stops)


def _token_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise RequestError(f"stop_token_ids is {show(value)}; it must be a list of token ids")
    if len(value) > MAX_STOP_TOKENS:  # before anything is made of them: a range may be endless
        raise RequestError(f"stop_token_ids holds {len(value)} ids; it must hold at most {MAX_STOP_TOKENS}")
    ids = tuple(value)
    return tuple(_count(f"stop_token_ids[{i}]", token, 0, MAX_COUNT) for i, token in enumerate(ids))
