"""The page pool against a plain model of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.runtime.pages import PagePool


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_free_and_used_are_all_and_none_is_shared(total: int, moves: list[tuple[bool, int]]) -> None:
    pool, held = PagePool(total), list[list[int]]()
    for take, n in moves:
        if take and n <= pool.free:
            held.append(pool.take(n))
        elif not take and held:
            pool.give(held.pop(n % len(held)))
        out = [page for pages in held for page in pages]
        assert len(out) == len(set(out))
        assert pool.free + len(out) == total
        assert all(0 <= page < total for page in out)


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
