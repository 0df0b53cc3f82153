"""The page pool: who holds which pages of the KV cache. Integers only; the memory is the executor's.

    free ──take──► held by 1, 2, … ──give──► free, or, if the prefix cache keeps it, idle
                     ▲                                                              │ │
                     └──────────────────────── share ───────────────────────────────┘ └─► taken when no page is free

Every page is free, held or idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class PagePool:
    """`total` pages with a count of holders each. The page given back last is taken first, while its lines are warm."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.on_evict: Callable[[int], None] = lambda page: None  # told of each idle page that is taken
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._kept = bytearray(total)
        self._idle: dict[int, None] = {}  # the longest unused first

    @property
    def free(self) -> int:
        """How many pages hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """How many pages are idle: kept, and held by nobody."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """How many pages can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """How many pages somebody holds."""
        return self.total - len(self._free) - len(self._idle)

    def holders(self, page: int) -> int:
        """How often the page is held."""
        return self._holders[page]

    def take(self, count: int) -> list[int]:
        """`count` pages that nobody else holds; the longest idle ones go when no page is free."""
        if not 0 <= count <= self.available:
            raise ValueError(f"{count} pages wanted, {self.available} of {self.total} are free")
        taken = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page = next(iter(self._idle))
                del self._idle[page]
                self._kept[page] = 0
                self.on_evict(page)
            self._holders[page] = 1
            taken.append(page)
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Hold pages once more that somebody holds or the prefix cache keeps."""
        wrong = [page for page in pages if not self._holders[page] and page not in self._idle]
        if wrong:
            raise ValueError(f"pages {wrong} are shared, but hold nothing")
        for page in pages:
            self._idle.pop(page, None)
            self._holders[page] += 1

    def give(self, pages: Sequence[int]) -> None:
        """Let go of pages that one holder has, in the order of its tokens: the last ones are evicted first.

        A page that is not out is an error before anything changes.
        """
        wrong = [page for page in pages if not 0 <= page < self.total or not self._holders[page]]
        if wrong or len(set(pages)) != len(pages):
            raise ValueError(f"pages {wrong or pages} were given back but are not out, or twice")
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._rest(page)

    def keep(self, page: int) -> None:
        """Do not free this page, which somebody holds, when nobody holds it any more."""
        self._kept[page] = 1

    def drop(self, page: int) -> None:
        """The opposite of `keep`."""
        self._kept[page] = 0
        if page in self._idle:
            del self._idle[page]
            self._rest(page)

    def _rest(self, page: int) -> None:
        if self._kept[page]:
            self._idle[page] = None
        else:
            self._free.append(page)
