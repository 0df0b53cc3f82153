"""Steps that the builder runs for itself: to check the whole model, and to time it."""

from __future__ import annotations

from typing import Any

import numpy as np

from allotrope.artifact.plan import Plan
from allotrope.runtime.step import StepInput

PAGE_SIZE = 16


def step(plan: Plan, random: np.random.Generator, first: Any, counts: Any, pages: int, **changed: Any) -> StepInput:
    """One step of as many requests as there are `counts`: so many random tokens each, from position `first` on."""
    rows = len(counts)
    zeros = np.zeros(rows, np.float32)
    fields = {
        "slots": np.arange(rows, dtype=np.int32),
        "starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "first": np.asarray(first, np.int32),
        "tokens": random.integers(0, plan.vocab, int(np.sum(counts)), dtype=np.int32),
        # handed out backwards, so that a page's number never happens to be its place
        "pages": np.arange(rows * pages, dtype=np.int32)[::-1].reshape(rows, pages).copy(),
        "want": np.zeros(rows, np.uint8),
        "sample": np.zeros(rows, np.bool_),
        "prompt_lens": np.ones(rows, np.int32),
        "temperature": zeros,
        "top_k": np.zeros(rows, np.int32),
        "top_p": zeros + 1,
        "min_p": zeros,
        "seeds": np.zeros(rows, np.int64),
        "candidates": np.zeros(rows, np.int32),
        "page_copies": np.zeros((0, 2), np.int32),
    }
    return StepInput(**{**fields, **changed})
