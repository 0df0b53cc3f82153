"""A request: what was asked, checked against the engine, and how far it has come."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

from allotrope.errors import RequestError
from allotrope.runtime.sampling_params import SamplingParams, show

Candidates = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """What an engine can be asked for."""

    vocab: int
    max_len: int  # prompt and output together
    eos_ids: tuple[int, ...] = ()


@dataclass(eq=False)
class Request:
    """One request. The first six fields never change; the scheduler alone moves the rest."""

    id: int
    prompt_len: int
    params: SamplingParams
    seed: int
    max_tokens: int  # as asked, clipped to the engine's length
    stop_ids: frozenset[int]
    tokens: list[int]  # the prompt, then the output
    computed: int = 0  # how many tokens have their keys and values in the cache
    slot: int = -1  # while running: stable, unique among the running
    pages: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # one per output token
    candidates: list[Candidates] = field(default_factory=list)  # one per output token
    finish_reason: str | None = None  # stop length error abort
    stop_reason: str | int | None = None  # the stop string, or the stop token's id
    error: str | None = None

    @property
    def output(self) -> list[int]:
        """The tokens drawn so far, the one that stopped it included."""
        return self.tokens[self.prompt_len :]

    @property
    def positions(self) -> int:
        """The most positions that the cache must hold: the last token drawn is never computed."""
        return self.prompt_len + self.max_tokens - 1


def _is_id(token: object, vocab: int) -> bool:
    return not isinstance(token, bool) and isinstance(token, Integral) and 0 <= int(token) < vocab


def new_request(number: int, prompt: Sequence[int], params: SamplingParams, limits: Limits) -> Request:
    """A request that the engine can serve, or a RequestError that names field, value and bound.

    Where prompt and `max_tokens` together exceed the engine's length, the output is clipped and ends with
    `length`; a prompt of exactly that length still gets its one next token.
    """
    if not prompt:
        raise RequestError("the prompt holds no token", remedy="give at least one token id")
    if len(prompt) > limits.max_len:
        raise RequestError(
            f"the prompt is {len(prompt)} tokens long; the limit is {limits.max_len}", remedy="shorten the prompt"
        )
    for i, token in enumerate(prompt):
        if not _is_id(token, limits.vocab):
            raise RequestError(f"prompt_token_ids[{i}] is {show(token)}; it must be from 0 to {limits.vocab - 1}")
    for i, token in enumerate(params.stop_token_ids):
        if token >= limits.vocab:
            raise RequestError(f"stop_token_ids[{i}] is {token}; it must be from 0 to {limits.vocab - 1}")
    return Request(
        id=number,
        prompt_len=len(prompt),
        params=params,
        seed=secrets.randbits(63) if params.seed is None else params.seed,
        max_tokens=min(params.max_tokens, max(limits.max_len - len(prompt), 1)),
        stop_ids=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else limits.eos_ids),
        tokens=[int(token) for token in prompt],
    )
