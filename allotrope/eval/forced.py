"""An engine's logits over given texts: teacher-forced, through its own executor, many windows in a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from allotrope.errors import NumericalError
from allotrope.eval.windows import Window
from allotrope.runtime.opening import Opened
from allotrope.runtime.step import WANT_ALL, WANT_NONE, StepInput

_LOGITS_AT_ONCE = 1 << 24  # numbers held for one step, and for one group of windows
Piece = tuple[int, int, int]
"""Of which window, from which token, up to which."""


def groups(opened: Opened, windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows that are computed together: as many as logits and pages have room for, at least one."""
    vocab, page = opened.limits.vocab, opened.loop.scheduler.page_size
    group, rows, pages = list[Window](), 0, 0
    for window in windows:
        more = -(-len(window.ids) // page)
        if group and ((rows + len(window.ids)) * vocab > _LOGITS_AT_ONCE or pages + more > opened.executor.pages):
            yield group
            group, rows, pages = [], 0, 0
        group.append(window)
        rows, pages = rows + len(window.ids), pages + more
    if group:
        yield group


def forced(opened: Opened, group: Sequence[Window]) -> list[torch.Tensor]:
    """For each window the logits `[scored, vocab]` that its scored tokens are told by."""
    scheduler, vocab = opened.loop.scheduler, opened.limits.vocab
    pages = _pages(group, scheduler.page_size)
    most = scheduler.max_batched_tokens
    contexts = [(i, 0, window.first - 1) for i, window in enumerate(group)]
    scored = [(i, window.first - 1, len(window.ids)) for i, window in enumerate(group)]
    for pieces in packed(contexts, most):
        opened.executor.launch(_step(group, pieces, pages, WANT_NONE)).wait()
    parts: list[list[torch.Tensor]] = [[] for _ in group]
    for pieces in packed(scored, min(most, max(_LOGITS_AT_ONCE // vocab, 1))):
        out = opened.executor.launch(_step(group, pieces, pages, WANT_ALL)).wait()
        if not out.finite.all():
            raise NumericalError("the engine's logits are not finite", remedy="check it with: allotrope verify")
        logits, start = torch.as_tensor(out.logits), 0
        for i, begin, end in pieces:
            parts[i].append(logits[start : start + end - begin].clone())  # they are another step's soon
            start += end - begin
    return [torch.cat(part)[:-1] for part in parts]  # what comes after the last token is nobody's question


def packed(pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """Steps of at most `most` tokens; a piece that is too long for what is left of one goes on in the next."""
    step, room = list[Piece](), most
    for i, begin, end in pieces:
        start = begin
        while start < end:
            taken = min(room, end - start)
            step.append((i, start, start + taken))
            start, room = start + taken, room - taken
            if not room:
                yield step
                step, room = [], most
    if step:
        yield step


def _pages(group: Sequence[Window], size: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Each window's pages, in order; -1 where it needs no more."""
    counts = [-(-len(window.ids) // size) for window in group]
    found = np.full((len(group), max(counts)), -1, np.int32)
    start = 0
    for row, count in enumerate(counts):
        found[row, :count] = np.arange(start, start + count)
        start += count
    return found


def _step(
    group: Sequence[Window], pieces: Sequence[Piece], pages: np.ndarray[Any, np.dtype[np.int32]], want: int
) -> StepInput:
    rows, count = [i for i, _, _ in pieces], len(pieces)
    return StepInput(
        slots=np.asarray(rows, np.int32),
        starts=np.cumsum([0, *(end - begin for _, begin, end in pieces)]).astype(np.int32),
        first=np.asarray([begin for _, begin, _ in pieces], np.int32),
        tokens=np.concatenate([np.asarray(group[i].ids[begin:end], np.int32) for i, begin, end in pieces]),
        pages=pages[rows],
        want=np.full(count, want, np.uint8),
        sample=np.zeros(count, np.bool_),
        prompt_lens=np.asarray([len(group[i].ids) for i in rows], np.int32),
        temperature=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seeds=np.zeros(count, np.int64),
        candidates=np.zeros(count, np.int32),
        page_copies=np.zeros((0, 2), np.int32),
    )
