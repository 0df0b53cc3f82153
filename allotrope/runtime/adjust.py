"""Which logits of a request are changed before its next token is drawn: penalties, bias, what is forbidden.

Kept on the host, token by token, as few entries: those of the tokens that something is known about, never
one per word of the vocabulary. Token t, seen c times in the output, has

    divide = repetition_penalty if t is in prompt or output, else 1
    add    = logit_bias[t] − presence_penalty · (c > 0) − frequency_penalty · c,  or −∞ if t is forbidden now

A token is forbidden if it alone is a bad word; if it ends one whose other tokens are the last of prompt and
output; and if it would stop the request before `min_tokens` others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.step import Floats, Ints

BadWords = tuple[tuple[int, ...], ...]
Entries = tuple[Ints, Floats, Floats]
"""Tokens, each at most once, and their `divide` and `add`."""

_ROOM = 64  # entries that are made room for at first


def bad_word_ids(words: Sequence[str], encode: Callable[[str], Sequence[int]]) -> BadWords:
    """Each word's tokens: as it starts a text and, where that is another single spelling, as it follows a space.

    `encode` adds no special tokens. Like vLLM, it takes the spelling after a space only where the space goes
    into the first token, so that what is forbidden is the word and not the space.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        bare = word.lstrip() or word
        plain, spaced = tuple(encode(bare)), tuple(encode(" " + bare))
        found.append(plain)
        if len(spaced) == len(plain) and spaced[:1] != plain[:1]:
            found.append(spaced)
    return tuple(dict.fromkeys(ids for ids in found if ids))


class Adjuster:
    """One request's adjustments. Tell it each token that is drawn; ask for the entries before the next."""

    def __init__(
        self, params: SamplingParams, stop_ids: Collection[int], bad_words: BadWords, prompt: Sequence[int]
    ) -> None:
        self._params = params
        self._repeating = params.repetition_penalty != 1
        self._counting = bool(params.presence_penalty or params.frequency_penalty)
        self._drawn = 0
        self._counts: dict[int, int] = {}  # of the output
        known = np.unique(np.asarray(prompt, np.int32)) if self._repeating else np.zeros(0, np.int32)
        self._place: dict[int, int] = dict(zip(known.tolist(), range(len(known)), strict=True))  # token → its entry
        self._tokens = np.concatenate([known, np.zeros(_ROOM, np.int32)])
        self._divide = np.ones(len(self._tokens), np.float32)
        self._divide[: len(known)] = params.repetition_penalty
        self._add = np.zeros(len(self._tokens), np.float32)
        self._bias = dict(params.logit_bias or ()) | {ids[0]: -np.inf for ids in bad_words if len(ids) == 1}
        for token, bias in self._bias.items():
            place = self._entry(token)  # first, as it may move the arrays
            self._add[place] = bias
        self._stops = [self._entry(token) for token in stop_ids] if params.min_tokens else []
        self._words = tuple((ids[:-1], self._entry(ids[-1])) for ids in bad_words if len(ids) > 1)
        self._reach = max((len(before) for before, _ in self._words), default=0)
        self._last = tuple(prompt[-self._reach :]) if self._reach else ()  # of prompt and output
        self._kept: Entries | None = None  # until the next token that matters

    @property
    def needs_tokens(self) -> bool:
        """Whether the entries depend on the tokens drawn so far, so that none of these may be unknown."""
        return self._counting or self._repeating or bool(self._words) or self._too_early

    @property
    def _too_early(self) -> bool:
        return bool(self._stops) and self._drawn < self._params.min_tokens

    def push(self, token: int) -> None:
        """Take in a token that was drawn."""
        if self.needs_tokens:
            self._kept = None
        self._drawn += 1
        if self._reach:
            self._last = (*self._last, token)[-self._reach :]
        if not (self._repeating or self._counting):
            return
        place = self._entry(token)  # first, as it may move the arrays
        if self._repeating:
            self._divide[place] = self._params.repetition_penalty
        if self._counting:
            times = self._counts[token] = self._counts.get(token, 0) + 1
            penalty = self._params.presence_penalty + self._params.frequency_penalty * times
            self._add[place] = self._bias.get(token, 0.0) - penalty

    def entries(self) -> Entries:
        """What the next token's logits are changed by; nobody writes to these arrays again."""
        if self._kept is None:
            self._kept = self._made()
        return self._kept

    def _made(self) -> Entries:
        count = len(self._place)
        tokens, divide, add = self._tokens[:count].copy(), self._divide[:count].copy(), self._add[:count].copy()
        if self._too_early:
            add[self._stops] = -np.inf
        for before, place in self._words:
            if self._last[-len(before) :] == before:
                add[place] = -np.inf
        if self._stops or self._words:  # what is not forbidden now
            live = (divide != 1) | (add != 0)
            return tokens[live], divide[live], add[live]
        return tokens, divide, add

    def _entry(self, token: int) -> int:
        """Where the token's entry is, made if need be."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._tokens):
            more = np.zeros(len(self._tokens), np.int32)
            self._tokens = np.concatenate([self._tokens, more])
            self._divide = np.concatenate([self._divide, (more + 1).astype(np.float32)])
            self._add = np.concatenate([self._add, more.astype(np.float32)])
        self._tokens[place] = token
        return place
