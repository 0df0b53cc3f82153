"""A request: what was asked, checked against the engine, and how far it has come."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING

from allotrope.errors import RequestError
from allotrope.runtime.adjust import Adjuster, BadWords
from allotrope.runtime.beams import BeamSearch
from allotrope.runtime.bounds import show
from allotrope.runtime.sampling_params import SamplingParams, check_vocabulary
from allotrope.runtime.step import Candidates, Scored

if TYPE_CHECKING:
    from allotrope.runtime.beam_rows import BeamRows

_SEEDS = 2**64


@dataclass(frozen=True)
class Limits:
    """What an engine can be asked for."""

    vocab: int
    max_len: int  # prompt and output together
    eos_ids: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class Request:
    """One request. What stands before `computed` never changes but for `tokens`; the scheduler alone moves the rest.

    tokens    p p p p p p o o o |        prompt, output, then `pending` tokens that only the device knows
    computed  ----->                     read back: their keys and values are in the cache
    planned   ------------->             launched; at most all tokens but the last
    """

    id: int
    prompt_len: int
    params: SamplingParams
    seed: int
    max_tokens: int  # as asked, clipped to the engine's length
    stop_ids: frozenset[int]
    tokens: list[int]  # the prompt, then the output
    index: int = 0  # which of its prompt's `n` answers
    priority: int = 0  # under that policy lower comes first
    salt: int = 0  # requests share cached prefixes only with those of the same salt
    needs_tokens: bool = False  # the next step's input depends on the last token: it cannot be launched before
    group: BeamSearch | None = None  # a beam search: `output` is filled when it ends, with the best text
    computed: int = 0
    planned: int = 0
    pending: int = 0
    adjuster: Adjuster | None = None  # how its logits are changed before a token is drawn
    key: tuple[int, int] = (0, 0)  # its place in the order: priority and arrival
    parent: Request | None = None  # the one of the same prompt that computes it for all, until this one is admitted
    slot: int = -1  # while running: stable, unique among the running
    pages: list[int] = field(default_factory=list)
    beams: BeamRows | None = None  # while running as a beam search: its rows
    prefix: Hashable = None  # the last of its pages that the prefix cache knows, or a root
    prefixed: int = 0  # how many it knows
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    preemptions: int = 0
    logprobs: list[float] = field(default_factory=list)  # one per output token
    candidates: list[Candidates] = field(default_factory=list)  # one per output token
    prompt_scores: list[Scored] = field(default_factory=list)  # one per prompt token but the first, if asked for
    finish_reason: str | None = None  # stop length error abort
    stop_reason: str | int | None = None  # the stop string, or the stop token's id
    error: str | None = None
    positions: int = field(init=False)  # the most that the cache must hold: the last token drawn is never computed

    def __post_init__(self) -> None:
        self.positions = self.prompt_len + self.max_tokens - 1

    @property
    def output(self) -> list[int]:
        """The tokens drawn so far, the one that stopped it included."""
        return self.tokens[self.prompt_len :]

    @property
    def left(self) -> int:
        """How many tokens are there to launch, the unknown ones counted; one for a request that decodes."""
        return len(self.tokens) + self.pending - self.planned

    @property
    def width(self) -> int:
        """How many rows it runs in."""
        return 1 if self.group is None else self.group.width

    @property
    def draws_only(self) -> bool:
        """Whether, once it decodes, a step of it follows from the one before and has nothing to tell but a token."""
        plain = self.adjuster is None and self.group is None
        return plain and not self.params.logprobs and not self.params.stop

    @property
    def wants_scores(self) -> bool:
        """Whether log-probabilities of its prompt were asked for and are not there yet."""
        return self.params.prompt_logprobs is not None and len(self.prompt_scores) < self.prompt_len - 1


def _is_id(token: object, vocab: int) -> bool:
    return not isinstance(token, bool) and isinstance(token, Integral) and 0 <= int(token) < vocab


def new_request(
    number: int,
    prompt: Sequence[int],
    params: SamplingParams,
    limits: Limits,
    *,
    index: int = 0,
    priority: int = 0,
    salt: int = 0,
    bad_words: BadWords = (),
) -> Request:
    """A request that the engine can serve, or a RequestError that names field, value and bound.

    Where prompt and `max_tokens` together exceed the engine's length, the output is clipped and ends with
    `length`; a prompt of exactly that length still gets its one next token. Of `n` answers to one prompt, the
    one with `index` i draws from the seed i higher. `bad_words` are those of `params` as tokens.
    """
    _check_prompt(prompt, limits)
    check_vocabulary(params, limits.vocab)
    seed = secrets.randbits(63) if params.seed is None else params.seed
    request = Request(
        id=number,
        prompt_len=len(prompt),
        params=params,
        seed=(seed + index + _SEEDS // 2) % _SEEDS - _SEEDS // 2,
        max_tokens=min(params.max_tokens, max(limits.max_len - len(prompt), 1)),
        stop_ids=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else limits.eos_ids),
        tokens=list(map(int, prompt)),
        index=index,
        priority=priority,
        salt=salt,
    )
    if params.beams > 1:
        request.group = BeamSearch(
            params.beams, request.stop_ids, params.length_penalty, params.early_stopping, request.max_tokens
        )
        request.needs_tokens = True
    elif _adjusts(params):
        request.adjuster = Adjuster(params, request.stop_ids, bad_words, request.tokens)
        request.needs_tokens = request.adjuster.needs_tokens
    return request


def _adjusts(params: SamplingParams) -> bool:
    """Whether any logit is ever changed."""
    penalties = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    return bool(penalties or params.logit_bias or params.bad_words or params.min_tokens)


def _check_prompt(prompt: Sequence[int], limits: Limits) -> None:
    if not prompt:
        raise RequestError("the prompt holds no token", remedy="give at least one token id")
    if len(prompt) > limits.max_len:
        raise RequestError(
            f"the prompt is {len(prompt)} tokens long; the limit is {limits.max_len}", remedy="shorten the prompt"
        )
    if set(map(type, prompt)) == {int} and min(prompt) >= 0 and max(prompt) < limits.vocab:
        return  # as nearly always: a look at each token would be a good part of a short request's time
    for i, token in enumerate(prompt):
        if not _is_id(token, limits.vocab):
            raise RequestError(f"prompt_token_ids[{i}] is {show(token)}; it must be from 0 to {limits.vocab - 1}")
