"""The prefix cache: which page holds the keys and values of these tokens, after those.

A page is known by its own tokens and by the page before it, back to a root that stands for whatever else
changes keys and values. So a hit means that every token from the first on is the same:

    root (salt, length) ── [t0 … t15] ── [t16 … t31] ── [t32 … t47]
                                     └── [t16 … t31'] …

A page is found by a hash over (the page before, tokens), and both are compared in full.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from allotrope.runtime.pages import PagePool


@dataclass(frozen=True, eq=False)
class Node:
    """A page's place in the cache. Compared as an object, so that none is mistaken for a later one of the same page."""

    page: int
    key: Hashable


def _key(before: Hashable, tokens: Sequence[int]) -> Hashable:
    return (before, array("q", tokens).tobytes())


class PrefixCache:
    """Full pages of committed tokens. The pool decides when an unused one goes: the longest unused first."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self._pool, self._page_size = pool, page_size
        self._nodes: dict[Hashable, Node] = {}
        self._of_page: dict[int, Node] = {}
        pool.on_evict = self._forget

    def find(self, root: Hashable, tokens: Sequence[int], most: int) -> list[Node]:
        """The longest known beginning of `tokens`, at most `most` tokens. Nothing is held by finding it."""
        found: list[Node] = []
        before, size = root, self._page_size
        for start in range(0, most // size * size, size):
            node = self._nodes.get(_key(before, tokens[start : start + size]))
            if node is None:
                break
            found.append(node)
            before = node
        return found

    def add(self, before: Hashable, tokens: Sequence[int], page: int) -> Node:
        """Make known that `page`, which somebody holds, has these tokens; returns whose page is known for them now."""
        key = _key(before, tokens)
        node = self._nodes.get(key)
        if node is None:
            if page in self._of_page:  # known after a page that has been forgotten, so not to be found there
                self._forget(page)
            node = self._nodes[key] = self._of_page[page] = Node(page, key)
            self._pool.keep(page)
        return node

    def forget(self, pages: Sequence[int]) -> None:
        """Hand these pages out no more."""
        for page in pages:
            if page in self._of_page:
                self._forget(page)
                self._pool.drop(page)

    def _forget(self, page: int) -> None:
        del self._nodes[self._of_page.pop(page).key]
