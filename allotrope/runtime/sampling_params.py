"""How a request's tokens are drawn and when it ends: one immutable record, checked at birth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.errors import RequestError
from allotrope.runtime.bounds import LARGEST, biases, count, flag, real, show, texts, token_ids

MAX_STOPS = 16
MAX_BAD_WORDS = 64
MAX_WORD_BYTES = 256  # of a stop string or a bad word
MAX_STOP_TOKENS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_ANSWERS = 8
MAX_BEAMS = 16
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 100.0
REPETITIONS = (1e-6, 10.0)
MAX_PENALTY = 2.0
MAX_LENGTH_PENALTY = 10.0
SEEDS = (-(2**63), 2**63 - 1)  # steps carry seeds as int64
NEVER = "never"

LogitBias = Mapping[int, float] | tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SamplingParams:
    """Names and defaults as vLLM's users know them, and transformers' for beams. A wrong value is a RequestError.

    In this order: repetition penalty; presence and frequency penalties and bias; what is forbidden; temperature,
    top_k, top_p, min_p. Lists are kept as tuples, `logit_bias` as pairs.
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
    n: int = 1  # how many answers to the prompt
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt and output; 1 is off
    presence_penalty: float = 0.0  # subtracted from those of tokens in the output
    frequency_penalty: float = 0.0  # and this, as often as they are in it
    logit_bias: LogitBias | None = None  # token id → what is added to its logit
    bad_words: Sequence[str] = ()  # texts that may not be generated
    min_tokens: int = 0  # no stop token comes before so many others
    prompt_logprobs: int | None = None  # the same as `logprobs`, for each token of the prompt but the first
    beams: int = 1  # above 1: beam search, whose `n` best texts are the answers
    length_penalty: float = 1.0  # a beam's score is the sum of its log-probabilities / length^this
    early_stopping: bool | str = False  # whether beams end with the first so many texts; or "never" before they must

    def __post_init__(self) -> None:
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)
        if self.beams > 1:
            self._check_beams()
        else:
            self._check_drawing()
        if self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}; it must be at most max_tokens, {self.max_tokens}")

    def _checked(self) -> dict[str, Any]:
        """Every field against its own bounds."""
        checked: dict[str, Any] = {
            "max_tokens": count("max_tokens", self.max_tokens, 1, LARGEST),
            "temperature": real("temperature", self.temperature, 0.0, MAX_TEMPERATURE),
            "top_k": max(count("top_k", self.top_k, -1, LARGEST), 0),
            "top_p": real("top_p", self.top_p, 0.0, 1.0, open_low=True),
            "min_p": real("min_p", self.min_p, 0.0, 1.0),
            "stop": texts("stop", self.stop, MAX_STOPS, MAX_WORD_BYTES),
            "stop_token_ids": token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKENS),
            "n": count("n", self.n, 1, MAX_ANSWERS),
            "repetition_penalty": real("repetition_penalty", self.repetition_penalty, *REPETITIONS),
            "logit_bias": biases("logit_bias", self.logit_bias, MAX_BIASES, -MAX_BIAS, MAX_BIAS),
            "bad_words": texts("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_WORD_BYTES),
            "min_tokens": count("min_tokens", self.min_tokens, 0, LARGEST),
            "beams": count("beams", self.beams, 1, MAX_BEAMS),
            "length_penalty": real("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
        }
        for name in ("presence_penalty", "frequency_penalty"):
            checked[name] = real(name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY)
        if self.seed is not None:
            checked["seed"] = count("seed", self.seed, *SEEDS)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                checked[name] = count(name, getattr(self, name), 0, MAX_LOGPROBS)
        for name in ("ignore_eos", "skip_special_tokens"):
            checked[name] = flag(name, getattr(self, name))
        if not isinstance(self.early_stopping, bool) and self.early_stopping != NEVER:
            raise RequestError(f'early_stopping is {show(self.early_stopping)}; it must be True, False or "{NEVER}"')
        return checked

    def _check_beams(self) -> None:
        """Beams take the likeliest texts: nothing is drawn, and nothing may change what is likely."""
        if self.n > self.beams:
            raise RequestError(f"n is {self.n}; with beams it must be at most their number, {self.beams}")
        wanted = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        wanted |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise RequestError(f"{name} is {getattr(self, name):g}; with beams it must be {value:g}")
        for name in ("logit_bias", "bad_words", "stop"):
            if getattr(self, name):
                raise RequestError(f"{name} is {show(getattr(self, name))}; with beams it must be empty")
        if self.logprobs:
            raise RequestError(f"logprobs is {self.logprobs}; with beams it must be 0 or None")

    def _check_drawing(self) -> None:
        """What only beams have is not given without them."""
        if self.temperature == 0 and self.n > 1:
            raise RequestError(
                f"n is {self.n}; at temperature 0 it must be 1, as all answers would be the same",
                remedy="raise temperature, or give beams",
            )
        for name, value in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(self, name) != value:
                raise RequestError(f"{name} is {show(getattr(self, name))}; without beams it must be {value}")


def check_vocabulary(params: SamplingParams, vocab: int) -> None:
    """A RequestError unless every token id that the parameters name is one of the vocabulary's."""
    named = [(f"stop_token_ids[{i}]", token) for i, token in enumerate(params.stop_token_ids)]
    named += [("an id in logit_bias", token) for token, _ in params.logit_bias or ()]  # type: ignore[misc]
    for name, token in named:
        if token >= vocab:
            raise RequestError(f"{name} is {token}; it must be from 0 to {vocab - 1}")
