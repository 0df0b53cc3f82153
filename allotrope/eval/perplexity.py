"""Perplexity of a text, and the distance from the original on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.errors import RequestError, UsageError
from allotrope.eval.files import read_text
from allotrope.eval.summaries import Progress
from allotrope.eval.windows import Window, windows

if TYPE_CHECKING:  # torch comes late: what is wrong with a file is said at once
    from allotrope.eval.distances import Tokens
    from allotrope.eval.sides import Sides
    from allotrope.verify.oracle import Oracle

LONGEST_WINDOW = 2048  # by default; a model may allow far more
_MOST = 10**9


@dataclass(frozen=True)
class Asked:
    """Which text, how much of it, and how it is cut."""

    file: Path
    tokens: int  # the first so many; 0: all
    window: int | None = None
    stride: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 0), ("window", 2), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= _MOST:
                raise UsageError(f"--{name} is {value}", remedy=f"give a number from {least} to {_MOST}")
        if self.tokens == 1:
            raise UsageError("--tokens is 1: nothing stands before it", remedy="give at least 2, or 0 for all")


@dataclass(frozen=True)
class Found:
    """What each token of the text costs both sides."""

    asked: Asked
    text_tokens: int
    window: int
    stride: int
    windows: Sequence[Window]
    tokens: Tokens
    seconds: dict[str, float]

    def described(self) -> dict[str, Any]:
        """What was evaluated."""
        return {
            "file": str(self.asked.file),
            "tokens": self.text_tokens,
            "read": self.text_tokens if not self.asked.tokens else min(self.asked.tokens, self.text_tokens),
            "scored": len(self.tokens),
            "window": self.window,
            "stride": self.stride,
            "windows": len(self.windows),
            "seconds": self.seconds,
        }

    def figures(self) -> dict[str, Any]:
        """The sums."""
        from allotrope.eval import distances

        return distances.figures(self.tokens, self.asked.seed)

    def samples(self) -> list[dict[str, float]]:
        """The raw figures, block by block."""
        from allotrope.eval import distances

        return distances.samples(self.tokens)


def read(asked: Asked) -> str:
    """The text; said before an engine is opened, or even built."""
    text = read_text(asked.file)
    if not text.strip():
        raise UsageError("the text is empty", where=str(asked.file), remedy="give some")
    return text


def evaluate(sides: Sides, asked: Asked, text: str, progress: Progress) -> Found:
    """Both sides over the same windows."""
    from allotrope.eval.distances import compared, joined
    from allotrope.eval.forced import forced, groups

    try:
        ids = sides.tokenizer.encode(text)
    except RequestError as error:
        raise RequestError(error.problem, where=str(asked.file), remedy="give a part of it") from error
    size, stride = _cut(sides, asked, len(ids))
    cut = windows(ids[: asked.tokens or len(ids)], size, stride)
    if not cut:
        raise UsageError("the text is one token: nothing stands before it", where=str(asked.file), remedy="give more")
    parts: list[Tokens] = []
    seconds = {"engine": 0.0, "original": 0.0}
    with progress(sum(window.scored for window in cut), "scoring tokens") as shown:
        for group in groups(sides.opened, cut):
            began = time.perf_counter()
            ours = forced(sides.opened, group)
            between = time.perf_counter()
            theirs = by_original(sides.original, group)
            seconds["engine"] += between - began
            seconds["original"] += time.perf_counter() - between
            for window, mine, other in zip(group, ours, theirs, strict=True):
                parts.append(compared(mine, other, window.targets))
                shown.advance(window.scored)
    return Found(asked, len(ids), size, stride, cut, joined(parts), seconds)


def by_original(original: Oracle, group: Sequence[Window]) -> list[Any]:
    """For each window the logits that its scored tokens are told by."""
    from allotrope.verify.oracle import LOGITS

    logits = original.walk([window.ids for window in group], {})[LOGITS]
    found, start = [], 0
    for window in group:
        found.append(logits[start + window.first - 1 : start + len(window.ids) - 1])
        start += len(window.ids)
    return found


def _cut(sides: Sides, asked: Asked, count: int) -> tuple[int, int]:
    """How long a window is and how far the next one moves on: half of it, unless told otherwise."""
    if asked.window is None:
        size = min(sides.context, max(LONGEST_WINDOW, asked.stride or 0))
    elif asked.window > sides.context:
        raise UsageError(
            f"--window is {asked.window}, and both sides are the same model up to {sides.context} tokens",
            remedy=f"give a number from 2 to {sides.context}",
        )
    elif asked.window > count:
        raise UsageError(
            f"the text has {count} tokens, fewer than a window of {asked.window}",
            where=str(asked.file),
            remedy="lower --window, or leave it out for one window",
        )
    else:
        size = asked.window
    if asked.stride is not None and asked.stride > size:
        raise UsageError(
            f"--stride is {asked.stride}, beyond the window's {size} tokens: some would be left out",
            remedy=f"give a number from 1 to {size}",
        )
    return size, asked.stride or max(size // 2, 1)
