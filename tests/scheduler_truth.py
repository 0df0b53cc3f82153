"""What must come of each request, worked out from its text alone. For the scheduler's world.

In place of keys and values a number stands for the whole text up to a position; the token drawn there, its
log-probability and what else is likely follow from that number and the request's seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from allotrope.runtime.adjust import Adjuster
from allotrope.runtime.beams import BeamSearch
from allotrope.runtime.request import Limits, Request

VOCAB, MAX_LEN, STOP = 29, 48, 7
LIMITS = Limits(VOCAB, MAX_LEN, (STOP,))
BAD_WORDS = ((3, 4), (11,))  # what any `bad_words` mean here
_MASK = 2**61 - 1


def mixed(number: int, value: int) -> int:
    """The number after one more value."""
    return ((number ^ (number >> 29)) * 0x9E3779B97F4A7C15 + 2 * value + 1) & _MASK


def likely(number: int, count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens after a text, all different, best first."""
    return tuple(((number + 5 * j) % VOCAB, -(((number >> j) % 13) + 7.0 * j) / 8) for j in range(min(count, VOCAB)))


def drawn(number: int, seed: int, adjust: tuple[Any, Any, Any] | None) -> int:
    """The token drawn after a text."""
    if adjust is None or not len(adjust[0]):
        return mixed(number, seed) % VOCAB
    own = mixed(number, seed)
    x = np.array([mixed(own, token) * (token + 3) % 1009 for token in range(VOCAB)]) / 250 - 2
    tokens, divide, add = adjust
    x[tokens] = np.where(x[tokens] > 0, x[tokens] / divide, x[tokens] * divide) + add
    return int(x.argmax())


def scored(number: int, target: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """What the log-probability of a given token after a text is, and what was likely."""
    return float(mixed(number, target) % 4096), likely(number, count)


@dataclass(eq=False)
class Truth:
    """One request and all that must come of it, past where it stops."""

    request: Request
    start: int  # the number of the empty text
    tokens: list[int]
    numbers: np.ndarray
    ends: tuple[list[int], str]  # output and finish_reason if nobody interferes
    scores: list[Any] = field(default_factory=list)
    launched: int = 0  # how many tokens of the text are known or being drawn
    checked: int = 0  # how many tokens of output have been compared
    ended_with: list[int] | None = None
    touched: bool = False  # somebody ended it from outside


def number_all(start: int, tokens: list[int]) -> list[int]:
    numbers = []
    for token in tokens:
        start = mixed(start, token)
        numbers.append(start)
    return numbers


def truth_of(request: Request, start: int) -> Truth:
    """Work everything out from the text alone."""
    tokens, params = list(request.tokens), request.params
    numbers = number_all(start, tokens)
    scores = [scored(numbers[i], token, params.prompt_logprobs or 0) for i, token in enumerate(tokens[1:])]
    if request.group is not None:
        return Truth(request, start, tokens, np.array(numbers), searched(request, start), scores)
    adjuster = None
    if request.adjuster is not None:
        adjuster = Adjuster(params, request.stop_ids, BAD_WORDS if params.bad_words else (), tokens)
    for _ in range(request.max_tokens):
        tokens.append(drawn(numbers[-1], request.seed, None if adjuster is None else adjuster.entries()))
        numbers.append(mixed(numbers[-1], tokens[-1]))
        if adjuster is not None:
            adjuster.push(tokens[-1])
    output = tokens[request.prompt_len :]
    end = next((i + 1 for i, token in enumerate(output) if token in request.stop_ids), None)
    ends = (output[:end], "length" if end is None else "stop")
    return Truth(request, start, tokens, np.array(numbers), ends, scores)


def searched(request: Request, start: int) -> tuple[list[int], str]:
    """A beam search's best text, found without a scheduler."""
    params = request.params
    search = BeamSearch(params.beams, request.stop_ids, params.length_penalty, False, request.max_tokens)
    texts: list[tuple[int, ...]] = [()]
    while True:
        numbers = [number_all(start, [*request.tokens, *text])[-1] for text in texts]
        if search.advance([likely(number, search.wanted) for number in numbers]) is None:
            best = search.best(1)[0]
            return list(best.tokens), best.finish_reason
        texts = search.outputs()
