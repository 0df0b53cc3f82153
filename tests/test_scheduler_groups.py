"""Several answers to one prompt, and beams: one computes for all, and pages are shared until they differ."""

from __future__ import annotations

import pytest

from allotrope.runtime.step import LAST_DRAWN
from tests.scheduler_kit import PAGE, counts, free, planned, step, world


@pytest.mark.parametrize("length", [1, 4, 10])
def test_n_answers_compute_their_prompt_once_and_copy_its_last_page(length: int) -> None:
    one = world(max_num_seqs=8)
    group = one.submit([3] * length, max_tokens=6, ignore_eos=True, n=3, seed=-5)
    assert [request.seed for request in group] == [-5, -4, -3]
    assert counts(planned(one)) == [length]
    done = planned(one)  # while the prompt is still in flight
    assert done.tokens.tolist() == [LAST_DRAWN, 3, 3] and done.first.tolist() == [length, length - 1, length - 1]
    assert len(done.page_copies) == (2 if length % PAGE != 1 else 0)
    assert all(request.pages[: (length - 1) // PAGE] == group[0].pages[: (length - 1) // PAGE] for request in group)
    one.drain()
    counted = one.scheduler.metrics()
    assert (counted.prompt_tokens, counted.output_tokens) == (length, 18)
    assert counted.computed_tokens == length + 2 + 3 * 5


def test_others_need_not_wait_for_a_prompt_that_is_not_theirs() -> None:
    one = world(max_batched_tokens=8)
    group = one.submit([3] * 12, max_tokens=2, ignore_eos=True, n=2)
    other = free(one, [1], 3)
    step(one)
    planned(one)
    assert one.scheduler.running == [group[0], other] and one.scheduler.waiting == [group[1]]
    one.drain()


def test_answers_go_on_by_themselves_when_the_first_has_gone() -> None:
    one = world()
    group = one.submit([3] * 12, max_tokens=2, ignore_eos=True, n=3)
    one.end(group[0], "abort")
    assert counts(planned(one)) == [12, 12]
    one.drain()


def test_answers_that_share_a_prompt_which_fails_compute_it_again() -> None:
    one = world()
    group = one.submit([3] * 9, max_tokens=2, ignore_eos=True, n=2)
    planned(one)
    planned(one)
    assert group[1].pages[:2] == group[0].pages[:2]
    one.abandon(0)
    assert counts(planned(one)) == [9, 9]
    one.drain()


def test_beams_run_in_lockstep_and_share_what_they_have_in_common() -> None:
    one = world(max_num_seqs=5)
    (search,) = one.submit([3] * 10, max_tokens=12, beams=3, temperature=0.0, ignore_eos=True)
    other = free(one, [1], 20)
    done = planned(one)
    assert done.want[0] and not done.sample[0] and done.candidates[0] == 3
    one.commit()
    while search.finish_reason is None:
        done = planned(one)
        assert counts(done) == [1] * 4 and done.sample.tolist() == [False] * 3 + [True]
        assert len({row[0] for row in done.pages[:3].tolist()}) == 1  # the prompt's first page
        assert one.scheduler.wants_commit
        one.commit()
        one.check()
    assert len(search.output) == 12 and len(search.logprobs) == 12 and other.finish_reason is None
    one.drain()


def test_what_is_promised_to_beams_is_taken_by_nobody() -> None:
    """The search comes to need 2 + 2 · 4 of 12 pages; whoever came later stalls or gives way, and ends after it."""
    one = world(pages=12, max_batched_tokens=16)
    (search,) = one.submit([3] * 8, max_tokens=17, beams=2, temperature=0.0, ignore_eos=True)
    late = free(one, [1] * 3, 20)
    while search.finish_reason is None:
        assert late.finish_reason is None
        step(one)
    one.drain()


def test_an_older_request_waits_for_beams_that_came_when_there_was_room() -> None:
    one = world(pages=12, max_num_seqs=8)
    old = free(one, [1] * 3, 30)
    step(one)
    (search,) = one.submit([3] * 8, max_tokens=17, beams=2, temperature=0.0, ignore_eos=True)
    while search.finish_reason is None:
        step(one)
    assert old.finish_reason is None and not old.preemptions
    one.drain()
