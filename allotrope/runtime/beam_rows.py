"""Where the rows of a beam search stand: their slots, and pages that they share as far as their texts do.

request.pages   [p0 p1 p2]                      the prompt's full pages, held once for all
tails           [a0 a1 a2] [a0 a1 b2] [c0 c1]   each beam's own and shared ones; the last is one beam's alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from allotrope.runtime.pages import PagePool


@dataclass(eq=False)
class BeamRows:
    """One beam search's rows, all at the same position."""

    slots: list[int]
    owed: int  # pages promised at admission and not yet taken
    tails: list[list[int]] = field(default_factory=list)  # empty while the prompt is computed
    tokens: list[int] = field(default_factory=list)  # each beam's last
    copies: list[tuple[int, int]] = field(default_factory=list)  # for the next step

    def grow(self, pool: PagePool) -> None:
        """A page for each beam."""
        for tail in self.tails:
            tail.extend(pool.take(1))
        self.owed -= len(self.tails)

    def reorder(self, pool: PagePool, chosen: Sequence[tuple[int, int]], full: int) -> None:
        """Let each beam go on from (parent, token). `full`: how many pages of a tail are full.

        The first to go on from a parent takes its pages over; the others share the full ones and copy the rest.
        """
        before, heirs = pool.used, set[int]()
        for parent in set(range(len(self.tails))) - {parent for parent, _ in chosen}:
            pool.give(self.tails[parent])
        tails = []
        self.copies = []
        for parent, _ in chosen:
            tail = self.tails[parent]
            if parent in heirs:
                pool.share(tail[:full])
                own = pool.take(len(tail) - full)
                self.copies += zip(tail[full:], own, strict=True)
                tail = tail[:full] + own
            heirs.add(parent)
            tails.append(tail)
        self.tails, self.tokens = tails, [token for _, token in chosen]
        self.owed -= pool.used - before

    def release(self, pool: PagePool) -> None:
        """Let go of all tails."""
        for tail in self.tails:
            pool.give(tail)
        self.tails = []
