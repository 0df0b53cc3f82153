"""The prefix cache: what it finds, what it must not find, and what goes first."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.runtime import prefix
from allotrope.runtime.pages import PagePool
from allotrope.runtime.prefix import PrefixCache
from allotrope.runtime.scheduler import Scheduler
from tests.scheduler_truth import VOCAB
from tests.scheduler_world import World

SIZE = 2
TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=9), min_size=1, max_size=12)


def store(cache: PrefixCache, pool: PagePool, root: Hashable, tokens: Sequence[int]) -> list[int]:
    """Keep a text's full pages, as a request does that ends at once; returns where they are."""
    pages, before = [], root
    for start in range(0, len(tokens) // SIZE * SIZE, SIZE):
        (page,) = pool.take(1)
        node = cache.add(before, tokens[start : start + SIZE], page)
        if node.page != page:
            pool.share([node.page])
            pool.give([page])
        pages.append(node.page)
        before = node
    pool.give(pages)
    return pages


@dataclass(frozen=True)
class SameHash:
    """A key whose hash says nothing."""

    parts: tuple[object, ...]

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("collide", [False, True])
@given(texts=TEXTS, asked=st.lists(st.integers(0, 1), max_size=9), roots=st.lists(st.integers(0, 1), min_size=12))
def test_what_is_found_has_been_stored_and_is_the_longest(
    collide: bool, texts: list[list[int]], asked: list[int], roots: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(prefix, "_key", lambda before, tokens: SameHash((before, tuple(tokens))))
        pool = PagePool(200)
        cache = PrefixCache(pool, SIZE)
        known = dict[tuple[int, tuple[int, ...]], int]()
        for root, text in zip(roots, texts, strict=False):
            for i, page in enumerate(store(cache, pool, root, text), start=1):
                assert known.setdefault((root, tuple(text[: i * SIZE])), page) == page
        expected = []
        for end in range(SIZE, len(asked) + 1, SIZE):
            if (0, tuple(asked[:end])) not in known:
                break
            expected.append(known[0, tuple(asked[:end])])
        assert [node.page for node in cache.find(0, asked, len(asked))] == expected
        assert [node.page for node in cache.find(0, asked, len(asked) - 1)] == expected[
            : max(len(asked) - 1, 0) // SIZE
        ]


@given(texts=TEXTS, pages=st.integers(5, 9))
def test_what_is_evicted_leads_nowhere(texts: list[list[int]], pages: int) -> None:
    """The end of a text goes before its beginning: whatever is kept can be found."""
    pool = PagePool(pages)
    cache = PrefixCache(pool, SIZE)
    for text in texts:
        store(cache, pool, 0, text)
        for node in cache._nodes.values():
            before = node.key[0]  # type: ignore[index]
            assert before == 0 or cache._of_page.get(before.page) is before


def test_the_longest_unused_goes_first() -> None:
    pool = PagePool(3)
    cache = PrefixCache(pool, SIZE)
    for text in ([1, 1], [2, 2], [3, 3]):
        store(cache, pool, 0, text)
    (node,) = cache.find(0, [1, 1], 2)
    pool.share([node.page])  # used again
    pool.give([node.page])
    pool.take(1)
    assert [len(cache.find(0, text, 2)) for text in ([1, 1], [2, 2], [3, 3])] == [1, 0, 1]


def test_what_is_forgotten_is_not_found_and_its_pages_are_free() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool, SIZE)
    idle = store(cache, pool, 0, [1, 1, 2, 2])
    (mine,) = pool.take(1)
    cache.add(0, [5, 5], mine)
    cache.forget([*idle, mine])
    assert not cache.find(0, [1, 1, 2, 2], 4) and not cache.find(0, [5, 5], 2)
    assert (pool.cached, pool.free) == (0, 3)
    pool.give([mine])
    assert pool.free == 4


def test_a_page_can_be_made_known_again_after_one_before_it_was_forgotten() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool, SIZE)
    first, second = pool.take(2)
    cache.add(cache.add(0, [1, 1], first), [2, 2], second)
    cache.forget([first])
    assert not cache.find(0, [1, 1, 2, 2], 4)
    cache.add(cache.add(0, [1, 1], first), [2, 2], second)
    assert [node.page for node in cache.find(0, [1, 1, 2, 2], 4)] == [first, second]
    pool.give([first, second])
    pool.take(4)
    assert not cache._nodes and not cache._of_page


# In the scheduler.


def world(**sizes: object) -> World:
    return World(**({"pages": 40, "page_size": 4, "max_num_seqs": 4, "max_batched_tokens": 64} | sizes))


TEXT = [(5 * i + 2) % VOCAB for i in range(20)]


def test_the_second_of_two_with_one_beginning_computes_only_the_rest() -> None:
    one = world()
    one.submit(TEXT, max_tokens=1)
    one.drain()
    (request,) = one.submit([*TEXT[:17], 1, 2], max_tokens=3, ignore_eos=True)
    step = one.plan()
    assert step is not None and step.first.tolist() == [16] and step.tokens.tolist() == [TEXT[16], 1, 2]
    assert request.cached_tokens == 16
    counts = one.scheduler.metrics()
    assert (counts.prefix_query_tokens, counts.prefix_hit_tokens) == (19 + 18, 16)
    one.drain()


def test_at_least_one_token_is_computed() -> None:
    one = world()
    for _ in range(2):
        (request,) = one.submit(TEXT, max_tokens=1)
        step = one.plan()
        one.drain()
    assert step is not None and step.first.tolist() == [16] and request.cached_tokens == 16


def test_output_is_found_as_well() -> None:
    """The next turn of a chat begins with what was said."""
    one = world()
    (request,) = one.submit(TEXT, max_tokens=9, ignore_eos=True)
    one.drain()
    (turn,) = one.submit([*request.tokens, 1, 2, 3], max_tokens=1)
    one.drain()
    assert turn.cached_tokens == 28  # 20 + 8 computed; the last token drawn was not


def test_two_that_compute_the_same_at_once_keep_it_once() -> None:
    one = world(prefix_cache=True)
    one.submit(TEXT, max_tokens=2, ignore_eos=True)
    one.submit(TEXT, max_tokens=2, ignore_eos=True)
    one.plan()
    assert one.pool.used == 10
    one.commit()
    one.check()
    assert one.pool.used == 5
    one.drain()


@pytest.mark.parametrize(
    ("sizes", "first", "second", "hits"),
    [
        ({}, {"salt": 1}, {"salt": 1}, 16),
        ({}, {"salt": 1}, {"salt": 2}, 0),
        ({"prefix_cache": False}, {}, {}, 0),
        ({"rotary_lengths": (20,)}, {}, {}, 16),
        ({"rotary_lengths": (30, 19)}, {}, {}, 16),
        ({}, {}, {"prompt_logprobs": 0}, 0),
    ],
)
def test_who_shares(sizes: dict, first: dict, second: dict, hits: int) -> None:
    one = world(**sizes)
    one.submit(TEXT, max_tokens=1, **first)
    one.drain()
    (request,) = one.submit(TEXT, max_tokens=1, **second)
    one.drain()
    assert request.cached_tokens == hits


def test_beyond_a_rotary_length_only_prompts_of_one_length_share() -> None:
    one = world(rotary_lengths=(18,))
    one.submit(TEXT, max_tokens=1)
    one.drain()
    for length, hits in ((19, 0), (20, 16), (18, 0)):
        (request,) = one.submit(TEXT[:length], max_tokens=1)
        one.drain()
        assert request.cached_tokens == hits


def test_nothing_is_taken_from_a_request_whose_logits_were_not_finite() -> None:
    one = world(max_batched_tokens=8)
    (bad,) = one.submit(TEXT, max_tokens=1)
    for fault in (None, None, 0):
        one.plan()
        one.commit(fault)
    assert bad.finish_reason == "error" and one.pool.free == 40
    (request,) = one.submit(TEXT, max_tokens=1)
    one.drain()
    assert request.cached_tokens == 0


def test_a_preempted_request_finds_its_own_pages() -> None:
    """Twelve pages for two that come to need eight each: the younger gives way, and computes little again."""
    one = world(pages=12, max_num_seqs=2)
    (first,) = one.submit(TEXT[:10], max_tokens=22, ignore_eos=True)
    (second,) = one.submit(TEXT[8:18], max_tokens=22, ignore_eos=True)
    one.drain()
    assert (first.preemptions, second.preemptions) == (0, 1)
    counts = one.scheduler.metrics()
    computed = 24  # by each when the pages ran out
    assert counts.computed_tokens == first.positions + second.positions + computed - counts.prefix_hit_tokens
    assert counts.prefix_hit_tokens == 16  # the rest of its pages has gone to the first


def test_a_scheduler_without_the_cache_keeps_nothing() -> None:
    scheduler = Scheduler(8, 4, 1, 16, 16, prefix_cache=False)
    assert scheduler.metrics().pages_cached == 0
    one = world(prefix_cache=False)
    one.submit(TEXT, max_tokens=3)
    one.drain()
    assert one.scheduler.metrics().pages_free == 40
