"""Which tokens of a text are told after which: strided windows, as transformers' guide to perplexity cuts them.

    text      0 . . . . . . . . . . . . . n
    window 1  [ - s s s s s s s ]                 -: context only    s: scored
    window 2          [ - - - - s s s s ]         moved on by the stride
    window 3                  [ - - - - s s ]

Every token but the first is scored once, in the first window that holds it. Where windows do not overlap, a window's
own first token has nothing before it, and is not scored either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Token ids; those from `first` on are scored."""

    ids: tuple[int, ...]
    first: int

    @property
    def scored(self) -> int:
        """How many tokens are."""
        return len(self.ids) - self.first

    @property
    def targets(self) -> tuple[int, ...]:
        """These tokens."""
        return self.ids[self.first :]


def windows(ids: Sequence[int], size: int, stride: int) -> list[Window]:
    """Windows of `size` tokens, each `stride` further on than the last; what is left over is the last one."""
    if not 1 <= stride <= size or size < 2:
        raise ValueError(f"windows of {size} tokens, moved by {stride}")
    found, told = list[Window](), 0
    for start in range(0, len(ids), stride):
        end = min(start + size, len(ids))
        first = max(told - start, 1)
        if end - start > first:
            found.append(Window(tuple(ids[start:end]), first))
        told = end
        if end == len(ids):
            break
    return found
