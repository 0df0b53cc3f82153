"""Beam search over one prompt, as transformers defines it. Pure Python: what is likely comes in, who goes on comes out.

Each of W beams brings its likeliest next tokens, so many that W of them do not end their text. The
continuations are ranked by the sum of their log-probabilities:

    continuations, best first    c1  c2* c3  c4*        W = 2, * ends its text
    go on                        c1      c3             the best W that do not end
    end                              c2*                only those among the best W

Ended texts are ranked by sum / length^length_penalty; the best W are kept. Sums are kept in fp32, so that
near ties fall as they fall in transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from allotrope.runtime.step import Candidates

EarlyStopping = bool | str
"""True: stop as soon as W texts have ended. False: as soon as the best beam, at its present length, would rank
below all of them. "never": as soon as it would even at the length that favours it most."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that has ended."""

    tokens: tuple[int, ...]  # the output, its end token included
    logprobs: tuple[float, ...]  # one per token
    score: float  # sum of the log-probabilities / length^length_penalty
    finish_reason: str  # stop or length


@dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: np.float32


class _Next(NamedTuple):
    """What a beam may go on with."""

    total: np.float32
    parent: int
    token: int
    logprob: float


class BeamSearch:
    """One prompt's beams. `advance` takes a step; after it has returned None, `best` gives the result."""

    def __init__(
        self,
        width: int,
        eos_ids: Collection[int],
        length_penalty: float,
        early_stopping: EarlyStopping,
        max_tokens: int,
    ) -> None:
        self.width = width
        self.wanted = width + len(eos_ids)  # how many candidates each beam must bring
        self._ends = frozenset(eos_ids)
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_tokens = max_tokens
        self._beams = [_Beam((), (), np.float32(0))]  # the prompt alone; the others come from it
        self._ended: list[Hypothesis] = []  # best first, at most `width`
        self.done = False

    def advance(self, candidates: Sequence[Candidates]) -> list[tuple[int, int]] | None:
        """Take in each beam's likeliest (token, log-probability), best first. Who goes on: (beam, token), best first.

        The first call brings one beam, the prompt; all others bring `width`. None: the search is over.
        """
        ranked = self._ranked(candidates)
        length = len(self._beams[0].tokens) + 1
        last = length >= self._max_tokens
        self._end([self._grown(one) for one in ranked[: self.width] if last or one.token in self._ends], length)
        going = [] if last else [one for one in ranked if one.token not in self._ends][: self.width]
        self.done = len(going) < self.width or self._settled(going[0].total, length)
        if self.done:
            return None
        self._beams = [self._grown(one) for one in going]
        return [(one.parent, one.token) for one in going]

    def best(self, count: int) -> list[Hypothesis]:
        """The best texts, best first."""
        return self._ended[:count]

    def outputs(self) -> list[tuple[int, ...]]:
        """What each beam has said so far."""
        return [beam.tokens for beam in self._beams]

    def _ranked(self, candidates: Sequence[Candidates]) -> list[_Next]:
        """The continuations of all beams, best first."""
        pool = [
            _Next(beam.total + np.float32(logprob), parent, token, logprob)
            for parent, (beam, likely) in enumerate(zip(self._beams, candidates, strict=True))
            for token, logprob in likely
        ]
        pool.sort(key=lambda one: (-one.total, one.parent, one.token))
        return pool

    def _grown(self, one: _Next) -> _Beam:
        beam = self._beams[one.parent]
        return _Beam((*beam.tokens, one.token), (*beam.logprobs, one.logprob), one.total)

    def _end(self, beams: list[_Beam], length: int) -> None:
        """Rank texts that have just ended among those that had."""
        scale = np.float32(length**self._length_penalty)
        for beam in beams:
            reason = "stop" if beam.tokens[-1] in self._ends else "length"
            self._ended.append(Hypothesis(beam.tokens, beam.logprobs, float(beam.total / scale), reason))
        self._ended.sort(key=lambda hypothesis: -hypothesis.score)  # stable: of equals, the earlier one
        del self._ended[self.width :]

    def _settled(self, best: np.float32, length: int) -> bool:
        """Whether no beam that goes on can still change the result, by the rule that was asked for."""
        if len(self._ended) < self.width:
            return False
        if self._early_stopping is True:
            return True
        longest = self._early_stopping == "never" and self._length_penalty > 0
        reach = np.float32((self._max_tokens if longest else length) ** self._length_penalty)
        return not float(best / reach) > self._ended[-1].score
