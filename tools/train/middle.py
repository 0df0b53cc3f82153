"""Filling in the middle: a text is cut twice at any character, and its parts put in an order that ends with the middle.

A prompt's text is tokenised by itself, so parts must be as well: the tokens of a text that ends inside a word, or
between the spaces of an indentation, are others than the first tokens of the whole text. Tokenising every document
anew for every cut would cost more than training, so only the words around a cut are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from allotrope.tokenizers import Tokenizer
from tools.train.data import Ids

PREFIX, SUFFIX, MIDDLE = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"
AT_LINES = 0.6  # of the cuts are where a line begins
SHORT = 0.6  # of the middles are short, from a few tokens to some hundred
ONE_LINE = 0.6  # of the middles that are whole lines are a single one; the others have two, three …
SUFFIX_FIRST = 0.5  # of the rearranged texts put the suffix before the prefix
SHORTEST = 8  # tokens of a piece that is worth a cut
WINDOW = 48  # tokens on either side of a cut in which the beginning of a word is looked for


class Cutter:
    """Cuts sequences of tokens of one vocabulary, byte-level with GPT-2's words.

    Of the middles, `lines` are whole lines: what is asked for while somebody writes.
    """

    def __init__(self, tokenizer: Tokenizer, random: np.random.Generator, *, lines: float = 0.0) -> None:
        self._tokenizer, self._random, self._lines = tokenizer, random, lines
        pieces = [tokenizer.decode([token], skip_special=False) for token in range(tokenizer.vocab_size)]
        # A space before something else always begins a word, so tokens from there on do not depend on those before.
        self._word = np.array([len(piece) > 1 and piece[0] == " " and not piece[1].isspace() for piece in pieces])
        self._line = np.array(["\n" in piece for piece in pieces])
        special = (tokenizer.encode(name, special=False) for name in (PREFIX, SUFFIX, MIDDLE))
        self._prefix, self._suffix, self._middle = (token for [token] in special)
        self._end = tokenizer.eos_ids[0]

    def rearranged(self, ids: Ids, share: float) -> Sequence[int] | Ids:
        """With odds `share` in the order for filling in; otherwise as it is but for one cut, as after a prompt."""
        ended = len(ids) > 0 and int(ids[-1]) == self._end
        body = ids[:-1] if ended else ids
        if len(body) < SHORTEST:
            return ids
        tail = [self._end] if ended else []
        if self._random.random() >= share:
            left, right = self._cut(body, self._place(body, 0))
            return [*left, *right, *tail]
        first, second = self._places(body)
        # The later cut comes first: it leaves the tokens before it where they are.
        rest, after = self._cut(body, second)
        before, middle = self._cut(np.array(rest, np.uint16), first)
        if self._random.random() < SUFFIX_FIRST:
            return [self._prefix, self._suffix, *after, self._middle, *before, *middle, self._end]
        return [self._prefix, *before, self._suffix, *after, self._middle, *middle, self._end]

    def _places(self, ids: Ids) -> tuple[int, int]:
        """Two tokens to cut in: anywhere, or around a line or a few."""
        ends = np.flatnonzero(self._line[ids])
        if len(ends) > 1 and self._random.random() < self._lines:
            first = int(self._random.integers(0, len(ends) - 1))
            second = min(first + int(self._random.geometric(ONE_LINE)), len(ends) - 1)
            return int(ends[first]), int(ends[second])
        place = self._place(ids, 0)
        return place, self._place(ids, place, near=self._random.random() < SHORT)

    def _place(self, ids: Ids, low: int, *, near: bool = False) -> int:
        """A token to cut in, from `low` on: any one, or the next in which a line ends."""
        last = len(ids) - 1
        if near:
            last = min(last, low + int(2 ** self._random.uniform(2, 8)))
        place = int(self._random.integers(low, last + 1))
        if self._random.random() < AT_LINES:
            ends = np.flatnonzero(self._line[ids[place : place + 4 * WINDOW]])
            place += int(ends[0]) if len(ends) else 0
        return place

    def _cut(self, ids: Ids, place: int) -> tuple[list[int], list[int]]:
        """Two parts that meet inside token `place`, each tokenised as if it stood alone."""
        place = min(place, len(ids) - 1)
        low, high = max(0, place - WINDOW), place + 1 + WINDOW
        starts = self._word[ids[low:high]]
        before, after = np.flatnonzero(starts[: place - low + 1]), np.flatnonzero(starts[place - low + 1 :])
        first = low + int(before[-1]) if len(before) else low
        stop = place + 1 + int(after[0]) if len(after) else min(len(ids), high)
        text = self._text(ids[first:stop])
        if text is None:
            return ids[:place].tolist(), ids[place:].tolist()
        at = self._character(ids, first, place, text)
        left, right = self._ids(text[:at]), self._ids(text[at:])
        return [*ids[:first].tolist(), *left], [*right, *ids[stop:].tolist()]

    def _character(self, ids: Ids, first: int, place: int, text: str) -> int:
        """Where in `text`, which begins at token `first`, the cut is: after the token's last line end, or inside it."""
        start = len(self._text(ids[first:place]) or "")
        token = text[start : start + len(self._text(ids[place : place + 1]) or "")]
        if "\n" in token:
            return start + token.rindex("\n") + 1
        return start + int(self._random.integers(0, max(len(token), 1)))

    def _text(self, ids: npt.NDArray[np.uint16]) -> str | None:
        """What the tokens say; None where they begin or end inside a character."""
        text = self._tokenizer.decode(ids.tolist(), skip_special=False)
        return None if "\ufffd" in text else text

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False, allow_special=False)
