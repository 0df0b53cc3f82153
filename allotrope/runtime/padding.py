"""Steps padded to one of a few sizes: what a recorded step is given besides the rows that somebody asked for.

Rows of padding have a slot and a page of their own, which nobody else reads. Where prompts take part, they share
the tokens that are left over:

    tokens   [ 23 of a prompt ][ 1 ][ 1 ] + [ 4 of padding ][ 3 ]     25 tokens of 3 rows as 32 of 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allotrope.runtime.static import ahead
from allotrope.runtime.step import LAST_DRAWN, WANT_LAST, StepInput
from allotrope.runtime.step_tensors import promises, step_arrays

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seeds")


@dataclass(frozen=True)
class Sizes:
    """What a graph is recorded for."""

    tokens: int
    rows: int
    pages: int  # the page table's width
    greedy: bool
    filtered: bool
    draws: bool  # sampling is part of it

    @property
    def decodes(self) -> bool:
        """Each row has one token."""
        return self.tokens == self.rows


def buckets(most: int, unit: int) -> tuple[int, ...]:
    """Sizes up to `most`, each a multiple of `unit` or `most` itself: 1 2 3 4 6 8 12 16 24 32 48 64 96 … units."""
    found, size = [], 1
    while size * unit < most:
        found.append(size * unit)
        size = size + 1 if size < 4 else size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return (*found, most)


def at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest that is no smaller; 0 if there is none."""
    return next((size for size in sizes if size >= wanted), 0)


@dataclass(frozen=True)
class Padding:
    """Pads steps of one executor."""

    page_size: int
    slot: int  # of padding: the first that is nobody's
    page: int  # of padding
    tokens: tuple[int, ...]  # sizes of steps in which prompts take part; perhaps none
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    max_len: int

    def sizes(self, step: StepInput, whole: bool) -> Sizes | None:
        """The sizes to pad to; None if none will do. `whole`: sampling is part of what is recorded."""
        count, counts = len(step.tokens), np.diff(step.starts)
        tokens = rows = at_least(self.rows, step.rows)
        left = 0
        if count > step.rows:
            tokens, rows, left = self._mixed(count, step.rows)
        width = int(max((step.first + counts).max(), left) - 1) // self.page_size + 1
        pages = at_least(self.widths, width)
        if not rows or not pages:
            return None
        known = promises(step)
        greedy = bool(known["greedy"]) or not whole
        return Sizes(tokens, rows, pages, greedy, bool(known["filtered"]) and not greedy, whole)

    @property
    def most_rows(self) -> int:
        """Of any step: where prompts take part, one more than there are requests, for the tokens left over."""
        return self.rows[-1] + bool(self.tokens)

    def _mixed(self, count: int, rows: int) -> tuple[int, int, int]:
        """Tokens and rows for a step with prompts, and the most tokens of a row of padding; zeros where none will do.

        Tokens left over need a row to lie in, and each row of padding needs a token.
        """
        for tokens in self.tokens:
            spare = tokens - count
            among = at_least((*self.rows, self.most_rows), rows + (spare > 0))
            more = among - rows
            left = -(-spare // more) if more > 0 else 0
            if 0 <= more <= spare and left <= self.max_len:
                return tokens, among, left
        return 0, 0, 0

    def alone(self, sizes: Sizes) -> StepInput:
        """A step of nothing but padding."""
        return self._step(sizes.tokens, sizes.rows, sizes.pages)

    def around(self, step: StepInput, sizes: Sizes) -> StepInput:
        """The step with rows of padding behind its own. Every row draws; greedily, where drawing is not recorded."""
        rows, width = sizes.rows - step.rows, min(step.pages.shape[1], sizes.pages)
        padding = self._step(sizes.tokens - len(step.tokens), rows, sizes.pages)
        table = np.full((sizes.rows, sizes.pages), -1, np.int32)
        table[: step.rows, :width] = step.pages[:, :width]
        table[step.rows :] = padding.pages
        own = _SAMPLING if sizes.draws else ()
        names = ("slots", "first", "tokens", "prompt_lens", *own)
        joined: dict[str, Any] = {name: np.concatenate([getattr(step, name), getattr(padding, name)]) for name in names}
        joined["starts"] = np.concatenate([step.starts, padding.starts[1:] + len(step.tokens)])
        return replace(self._step(sizes.tokens, sizes.rows, 1), **joined, pages=table)

    def arrays(self, step: StepInput, drawn: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
        """A padded step's arrays, with where each token stands in `joint`. `drawn`: whose draws anybody wants."""
        found, _ = step_arrays(step, self.page_size)
        slots = np.repeat(step.slots, np.diff(step.starts))
        own = ahead(self.slot + 1) + np.arange(len(step.tokens))
        found["token_from"] = np.where(step.tokens == LAST_DRAWN, slots, own).astype(np.int64)
        if drawn is not None:
            found["drawn_slots"][: len(drawn)][~drawn] = self.slot
        unused = ("token_slots", "page_copies", "score_rows", "score_given")
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and name not in unused}

    def _step(self, tokens: int, rows: int, pages: int) -> StepInput:
        zeros, none = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        counts = np.full(rows, tokens // max(rows, 1), np.int32)
        counts[: tokens % max(rows, 1)] += 1
        return StepInput(
            slots=np.full(rows, self.slot, np.int32),
            starts=np.concatenate([zeros[:1] * 0, np.cumsum(counts)]).astype(np.int32)
            if rows
            else np.zeros(1, np.int32),
            first=zeros,
            tokens=np.zeros(tokens, np.int32),
            pages=np.full((rows, pages), self.page, np.int32),
            want=np.full(rows, WANT_LAST, np.uint8),
            sample=np.ones(rows, np.bool_),
            prompt_lens=np.ones(rows, np.int32),
            temperature=none,
            top_k=zeros,
            top_p=np.ones(rows, np.float32),
            min_p=none,
            seeds=np.zeros(rows, np.int64),
            candidates=zeros,
            page_copies=np.zeros((0, 2), np.int32),
        )
