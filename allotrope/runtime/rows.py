"""The running requests' facts as arrays, by slot, so that a step's input is gathered and not rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from allotrope.runtime.draft import Draft
from allotrope.runtime.request import Request
from allotrope.runtime.step import NO_INTS, NO_PAIRS, WANT_LAST, WANT_NONE, Adjustments, Ints, StepInput


class RowTable:
    """What stays the same while a request runs, written once at its admission, and its pages as they come."""

    def __init__(self, slots: int, max_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._pages = np.full((slots, max_pages), -1, np.int32)
        self._samples = np.zeros(slots, np.bool_)
        self._facts: dict[str, Any] = {
            "prompt_lens": np.zeros(slots, np.int32),
            "temperature": np.zeros(slots, np.float32),
            "top_k": np.zeros(slots, np.int32),
            "top_p": np.ones(slots, np.float32),
            "min_p": np.zeros(slots, np.float32),
            "seeds": np.zeros(slots, np.int64),
            "candidates": np.zeros(slots, np.int32),
        }
        self._last: tuple[list[int], list[int], list[bool]] = ([], [], [])  # the rows that `_same` was gathered for
        self._same: dict[str, Any] = {}
        self._stops: list[Ints] = [NO_INTS] * slots  # the tokens that end who has the slot
        self._pairs: Ints | None = None  # of the same rows, for each such token; None: nobody has asked

    def admit(self, request: Request, slot: int) -> None:
        """Fill a slot for a request, without pages."""
        params, beams = request.params, request.group
        values = {
            "prompt_lens": request.prompt_len,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "seeds": request.seed,
            "candidates": (params.logprobs or 0) if beams is None else beams.wanted,
        }
        for name, value in values.items():
            self._facts[name][slot] = value
        self._samples[slot] = beams is None
        self._stops[slot] = np.fromiter(request.stop_ids, np.int32, len(request.stop_ids))
        self._pages[slot] = -1
        self._last = ([], [], [])

    def put(self, slot: int, start: int, pages: Sequence[int]) -> None:
        """The slot's pages from its `start`-th on."""
        self._pages[slot, start : start + len(pages)] = pages

    def gather(self, draft: Draft) -> StepInput:
        """The step's input."""
        first = np.array(draft.first, np.int32)
        same = self._gather_facts(draft)
        last = int((first + np.array(draft.counts, np.int32)).max()) + draft.repeats - 2
        width = 1 + last // self.page_size  # only the pages that this step reads or writes
        return StepInput(
            first=first,
            tokens=np.array(draft.tokens, np.int32),
            pages=self._pages[same["slots"], :width],
            page_copies=np.array(draft.copies, np.int32) if draft.copies else NO_PAIRS,
            adjust=_adjustments(draft) if draft.adjusted else None,
            **same,
            **(_scores(draft, same["starts"]) if draft.scored else {}),
            **(self._repeated(draft) if draft.repeats > 1 else {}),
        )

    def _repeated(self, draft: Draft) -> dict[str, Any]:
        """How often, and what ends it: likewise the same as long as the rows are."""
        if self._pairs is None:
            stops = [self._stops[slot] for slot in draft.slots]
            rows = np.repeat(np.arange(len(stops), dtype=np.int32), [len(one) for one in stops])
            self._pairs = np.stack([rows, np.concatenate(stops)], 1)
        return {"repeats": draft.repeats, "hold_s": draft.hold_s, "ends": self._pairs}

    def _gather_facts(self, draft: Draft) -> dict[str, Any]:
        """What is the same as in the last step where that had the same rows: nobody changes a step's arrays."""
        rows = (draft.slots, draft.counts, draft.draws)
        if self._last != rows:
            slots, draws = np.array(draft.slots, np.int32), np.array(draft.draws, np.bool_)
            starts = np.zeros(len(slots) + 1, np.int32)
            np.cumsum(draft.counts, out=starts[1:])
            same = {name: values[slots] for name, values in self._facts.items()}
            same["candidates"] *= draws
            same["slots"], same["starts"] = slots, starts
            same["want"] = np.where(draws, np.uint8(WANT_LAST), np.uint8(WANT_NONE))
            same["sample"] = draws & self._samples[slots]
            self._last, self._same, self._pairs = rows, same, None
        return self._same


def _adjustments(draft: Draft) -> Adjustments | None:
    """What each row's adjuster says of its next draw; None if nothing changes for anybody."""
    rows, entries = [], []
    for row in draft.adjusted:
        adjuster = draft.requests[row].adjuster
        if adjuster is not None:
            entries.append(adjuster.entries())
            rows.append(np.full(len(entries[-1][0]), row, np.int32))
    tokens, divide, add = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    if not len(tokens):
        return None
    return Adjustments(np.concatenate(rows), tokens, divide, add)


def _scores(draft: Draft, starts: Ints) -> dict[str, Any]:
    """Which tokens of prompts to score: none twice, also when a prompt is computed again."""
    targets, candidates = np.full(len(draft.tokens), -1, np.int32), np.zeros(len(draft.requests), np.int32)
    for row in draft.scored:
        request, first, count = draft.requests[row], draft.first[row], draft.counts[row]
        low = max(first, len(request.prompt_scores))
        high = min(first + count, request.prompt_len - 1)
        at = int(starts[row]) - first
        if low < high:
            targets[at + low : at + high] = request.tokens[low + 1 : high + 1]
            candidates[row] = request.params.prompt_logprobs or 0
    return {"targets": targets, "target_candidates": candidates}
