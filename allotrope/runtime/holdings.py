"""Who holds which slots and pages, and what the executor is told of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from allotrope.runtime.beam_rows import BeamRows
from allotrope.runtime.pages import PagePool
from allotrope.runtime.prefix import PrefixCache
from allotrope.runtime.request import Request
from allotrope.runtime.rows import RowTable


class Holdings:
    """Slots and pages of an engine. A request gets pages for what it has at its admission, and more as it grows.

    A beam search never has to give way, so its worst case is promised to it: nobody else is given `promised` pages.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        slots: int,
        max_len: int,
        prefix_cache: bool,
        rotary_lengths: Sequence[int],
    ) -> None:
        self.pool = PagePool(pages)
        self.page_size = page_size
        self.cache = PrefixCache(self.pool, page_size) if prefix_cache else None
        self.table = RowTable(slots, self.pages_for(max_len), page_size)
        self.promised = 0
        self.query_tokens = self.hit_tokens = 0
        self._slots = list(range(slots - 1, -1, -1))
        self._rotary_lengths = tuple(rotary_lengths)

    @property
    def free_slots(self) -> int:
        """How many rows more could run."""
        return len(self._slots)

    @property
    def room(self) -> int:
        """How many pages can be given to somebody to whom none are promised."""
        return self.pool.available - self.promised

    def pages_for(self, positions: int) -> int:
        """How many pages hold so many positions."""
        return -(-positions // self.page_size)

    def most_pages(self, request: Request) -> int:
        """How many pages the request can come to hold, if it shares nothing with others."""
        each = self.pages_for(request.positions)
        if request.group is None:
            return each
        shared = request.prompt_len // self.page_size
        return shared + request.width * (each - shared)

    def admit(self, request: Request, spare: int) -> bool:
        """Give the request slots, and pages for its tokens, if `spare` pages are left beyond that."""
        if len(self._slots) < request.width:
            return False
        root = self._root(request)
        asked = 0 if self.cache is None or request.wants_scores else len(request.tokens) - 1
        hits = self.cache.find(root, request.tokens, asked) if self.cache is not None and asked else []
        pages = [node.page for node in hits]
        idle = sum(not self.pool.holders(page) for page in pages)
        needed = self.pages_for(len(request.tokens)) - len(hits)
        beyond = 0 if request.group is None else self.most_pages(request) - len(hits) - needed
        if idle + needed + beyond + spare > self.room:
            return False
        self.pool.share(pages)
        pages += self.pool.take(needed)
        self.promised += beyond
        self._seat(request, pages, beyond)
        found = len(hits) * self.page_size
        request.planned = request.computed = found
        request.prefix, request.prefixed = (hits[-1] if hits else root), len(hits)
        self.query_tokens += asked
        self.hit_tokens += found
        if not request.preemptions:
            request.cached_tokens = min(found, request.prompt_len)
        return True

    def fork(self, child: Request, parent: Request, spare: int) -> list[tuple[int, int]] | None:
        """Admit a request to all that a running one of the same prompt has of it; returns the pages to copy.

        The last token of the prompt is computed again, as this request draws from it with its own seed.
        """
        shared, filled = divmod(child.prompt_len - 1, self.page_size)
        if not self._slots or 1 + spare > self.room:
            return None
        pages = parent.pages[:shared]
        self.pool.share(pages)
        own = self.pool.take(1)
        self._seat(child, pages + own, 0)
        child.planned, child.computed = child.prompt_len - 1, 0
        child.prefix, child.prefixed = self._root(child), 0
        return [(parent.pages[shared], own[0])] if filled else []

    def grow(self, request: Request) -> bool:
        """See to it that the request has a page for its next position."""
        if request.planned < len(request.pages) * self.page_size:
            return True
        if self.room < 1:
            return False
        own = self.pool.take(1)
        self.table.put(request.slot, len(request.pages), own)
        request.pages += own
        return True

    def extend(self, requests: Sequence[Request], more: int) -> int:
        """Pages for so many positions of each beyond those planned, or for as many as free ones are enough for.

        That number is returned. Nobody's cached prefix goes for positions that may never come; `trim` takes back the
        pages of those that did not.
        """

        def lacking(request: Request) -> int:
            return max(self.pages_for(request.planned + more) - len(request.pages), 0)

        room = min(self.pool.free, self.room)
        while more and sum(map(lacking, requests)) > room:
            more -= 1
        for request in requests:
            own = self.pool.take(lacking(request))
            self.table.put(request.slot, len(request.pages), own)
            request.pages += own
        return more

    def trim(self, request: Request, positions: int) -> None:
        """Take back the pages beyond so many positions."""
        needed = self.pages_for(positions)
        if surplus := request.pages[needed:]:
            self.table.put(request.slot, needed, [-1] * len(surplus))
            self.pool.give(surplus)
            del request.pages[needed:]

    def grow_beams(self, request: Request, beams: BeamRows) -> None:
        """The same for each beam, out of what was promised."""
        start = len(request.pages) + len(beams.tails[0])
        if request.planned == start * self.page_size:
            self.promised -= beams.owed
            beams.grow(self.pool)
            self.promised += beams.owed
            for slot, tail in zip(beams.slots, beams.tails, strict=True):
                self.table.put(slot, start, tail[-1:])

    def reorder(self, request: Request, beams: BeamRows, chosen: Sequence[tuple[int, int]]) -> None:
        """Let each beam go on from (parent, token); the first time, from the prompt."""
        full = request.computed // self.page_size
        if not beams.tails:
            beams.tails = [request.pages[full:]]
            del request.pages[full:]
            for slot in beams.slots:
                self.table.admit(request, slot)
                self.table.put(slot, 0, request.pages)
        self.promised -= beams.owed
        beams.reorder(self.pool, chosen, full - len(request.pages))
        self.promised += beams.owed
        for slot, tail in zip(beams.slots, beams.tails, strict=True):
            self.table.put(slot, len(request.pages), tail)

    def remember(self, request: Request) -> None:
        """Make the request's full pages known to the prefix cache. Where another has the same, both use that one."""
        if self.cache is None:
            return
        size, pages = self.page_size, request.pages
        for i in range(request.prefixed, min(request.computed // size, len(pages))):
            node = self.cache.add(request.prefix, request.tokens[i * size : (i + 1) * size], pages[i])
            if node.page != pages[i]:
                self.pool.share([node.page])
                self.pool.give([pages[i]])
                pages[i] = node.page
                self.table.put(request.slot, i, [node.page])
            request.prefix, request.prefixed = node, i + 1

    def release(self, request: Request, *, forget: bool = False) -> None:
        """Take back all that the request holds. `forget`: what its pages hold is of no use to others.

        What steps in flight still write to them harms nobody: steps run in order, and the next holder of a page
        writes each position before it reads it.
        """
        if forget and self.cache is not None:
            self.cache.forget(request.pages)
        if request.beams is not None:
            self.promised -= request.beams.owed
            request.beams.release(self.pool)
            self._slots += request.beams.slots
        else:
            self._slots.append(request.slot)
        self.pool.give(request.pages)
        request.slot, request.pages, request.beams = -1, [], None
        request.computed = request.planned = request.pending = 0
        request.prefix, request.prefixed = None, 0

    def _seat(self, request: Request, pages: list[int], owed: int) -> None:
        slots = [self._slots.pop() for _ in range(request.width)]
        request.slot, request.pages = slots[0], pages
        if request.group is not None:
            request.beams = BeamRows(slots, owed)
        self.table.admit(request, request.slot)
        self.table.put(request.slot, 0, pages)

    def _root(self, request: Request) -> Hashable:
        """What keys and values depend on besides tokens: dynamic rotary scalings read the length of a long prompt."""
        long = any(request.prompt_len > length for length in self._rotary_lengths)
        return (request.salt, request.prompt_len if long else 0)
