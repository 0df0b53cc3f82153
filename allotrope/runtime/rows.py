"""The running requests' facts as arrays, by slot, so that a step's input is gathered and not rebuilt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from allotrope.runtime.request import Request
from allotrope.runtime.step import WANT_LAST, WANT_NONE, StepInput

_NO_COPIES = np.zeros((0, 2), np.int32)


class RowTable:
    """What stays the same while a request runs, written once at its admission."""

    def __init__(self, slots: int, max_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._pages = np.full((slots, max_pages), -1, np.int32)
        self._prompt_lens = np.zeros(slots, np.int32)
        self._temperature = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._seeds = np.zeros(slots, np.int64)
        self._candidates = np.zeros(slots, np.int32)

    def admit(self, request: Request) -> None:
        """Fill the request's slot."""
        slot, params = request.slot, request.params
        self._pages[slot] = -1
        self._pages[slot, : len(request.pages)] = request.pages
        self._prompt_lens[slot] = request.prompt_len
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seeds[slot] = request.seed
        self._candidates[slot] = params.logprobs or 0

    def gather(self, planned: Sequence[tuple[Request, int, bool]], tokens: list[int]) -> StepInput:
        """The step's input for (request, how many tokens, whether one is drawn) in this order."""
        slots = np.array([request.slot for request, _, _ in planned], np.int32)
        counts = np.array([count for _, count, _ in planned], np.int32)
        first = np.array([request.computed for request, _, _ in planned], np.int32)
        draws = np.array([draws for _, _, draws in planned], np.bool_)
        starts = np.zeros(len(planned) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        # Only the pages that this step reads or writes.
        width = -(-int((first + counts).max()) // self.page_size)
        return StepInput(
            slots=slots,
            starts=starts,
            first=first,
            tokens=np.array(tokens, np.int32),
            pages=self._pages[slots, :width],
            want=np.where(draws, np.uint8(WANT_LAST), np.uint8(WANT_NONE)),
            sample=draws,
            prompt_lens=self._prompt_lens[slots],
            temperature=self._temperature[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            seeds=self._seeds[slots],
            candidates=self._candidates[slots],
            page_copies=_NO_COPIES,
        )
