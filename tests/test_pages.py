"""The page pool against a plain model of it: who holds what, and what is kept when nobody does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.runtime.pages import PagePool

MOVES = st.lists(st.tuples(st.sampled_from(["take", "share", "give", "keep", "drop"]), st.integers(0, 12)), max_size=80)


@given(st.integers(1, 40), MOVES)
def test_free_held_and_idle_are_all(total: int, moves: list[tuple[str, int]]) -> None:
    pool, held, kept, idle, evicted = PagePool(total), list[list[int]](), set[int](), list[int](), list[int]()
    pool.on_evict = evicted.append
    for move, n in moves:
        if move == "take" and n <= pool.available:
            free = pool.free
            taken = pool.take(n)
            assert evicted == idle[: max(n - free, 0)]  # the longest idle first, and only when no page is free
            kept -= set(evicted)
            del idle[: len(evicted)]
            evicted.clear()
            held.append(taken)
        elif move == "give" and held:
            pages = held.pop(n % len(held))
            pool.give(pages)
            left = {page for others in held for page in others}
            idle += [page for page in reversed(pages) if page in kept and page not in left]
        elif move == "share" and (held or idle):
            pages = held[n % len(held)] if held and n % 2 else idle[-n:]
            pool.share(pages)
            idle = [page for page in idle if page not in pages]
            held.append(list(pages))
        elif move == "keep" and held and held[n % len(held)]:
            page = held[n % len(held)][-1]
            pool.keep(page)
            kept.add(page)
        elif move == "drop" and kept:
            page = sorted(kept)[n % len(kept)]
            pool.drop(page)
            kept.discard(page)
            idle = [other for other in idle if other != page]
        holders = Counter(page for pages in held for page in pages)
        assert [pool.holders(page) for page in range(total)] == [holders[page] for page in range(total)]
        assert (pool.used, pool.cached, pool.free) == (len(holders), len(idle), total - len(holders) - len(idle))


def test_more_than_there_are_is_refused_and_takes_nothing() -> None:
    pool = PagePool(4)
    with pytest.raises(ValueError, match=r"5 pages wanted, 4 of 4 are free"):
        pool.take(5)
    assert pool.free == 4


@pytest.mark.parametrize("wrong", [[9], [-1], [3]])
def test_giving_back_what_is_not_out(wrong: list[int]) -> None:
    pool = PagePool(4)
    mine = pool.take(2)
    with pytest.raises(ValueError, match="not out"):
        pool.give(mine + wrong)
    assert pool.free == 2


def test_giving_back_twice() -> None:
    pool = PagePool(4)
    mine = pool.take(2)
    with pytest.raises(ValueError, match="twice"):
        pool.give(mine + mine[:1])
    pool.give(mine)
    with pytest.raises(ValueError, match="not out"):
        pool.give(mine)
    assert pool.free == 4


def test_sharing_what_holds_nothing() -> None:
    pool = PagePool(4)
    mine = pool.take(1)
    with pytest.raises(ValueError, match=r"pages \[3\] are shared, but hold nothing"):
        pool.share([*mine, 3])
    assert pool.holders(mine[0]) == 1
