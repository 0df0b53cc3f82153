"""The page pool: which pages of the KV cache are free. Integers only; the memory is the executor's."""

from __future__ import annotations


class PagePool:
    """A free list over `total` pages. The page given back last is taken first, while its lines are warm."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._used = bytearray(total)

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages that nobody else holds."""
        if not 0 <= count <= len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} of {self.total} are free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._used[page] = 1
        return taken

    def give(self, pages: list[int]) -> None:
        """Take pages back. A page that is not out is an error before anything changes."""
        wrong = [page for page in pages if not 0 <= page < self.total or not self._used[page]]
        if wrong or len(set(pages)) != len(pages):
            raise ValueError(f"pages {wrong or pages} were given back but are not out, or twice")
        for page in pages:
            self._used[page] = 0
        self._free.extend(reversed(pages))
