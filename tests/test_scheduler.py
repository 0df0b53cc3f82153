"""The scheduler's decisions, one by one. What must hold whatever happens is in test_scheduler_machine."""

from __future__ import annotations

import pytest

from allotrope.errors import RequestError, UsageError
from allotrope.runtime.request import new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import LAST_DRAWN
from tests.scheduler_kit import counts, free, planned, step, world
from tests.scheduler_truth import LIMITS

# What a step is made of.


def test_prefill_is_packed_with_decodes_and_not_padded() -> None:
    one = world(max_batched_tokens=16)
    free(one, [1, 2, 3], 8)
    assert step(one).tokens.tolist() == [1, 2, 3]
    free(one, [*range(28), 1, 2], 2)
    assert [counts(step(one)) for _ in range(7)] == [[1, 15], [1, 15], [1, 1], [1], [1], [1], [1]]
    assert one.plan() is None


def test_decodes_come_before_chunks_of_older_prompts() -> None:
    """A long prompt takes what is left of each step; nobody who decodes waits for it."""
    one = world(max_batched_tokens=4)
    old = free(one, [5] * 30, 2)
    step(one)
    for _ in range(2):
        free(one, [1], 9)
    while old.computed < 28:
        done = step(one)
        assert counts(done) == sorted(counts(done))
    assert len(old.output) == 0
    one.drain()


def test_each_row_carries_its_own_requests_parameters() -> None:
    """Also in a slot that another request has used before."""
    one = world(max_num_seqs=3)
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "logprobs")
    values = [(0.5 + i, 3 + i, 0.1 + i / 20, i / 20, 1000 + i, i) for i in range(9)]
    owners = {}
    for i, row in enumerate(values):
        owners[free(one, [1] * (i + 1), 1 + i % 3, **dict(zip(names, row, strict=True)))] = row
    seen = set()
    while (done := one.plan()) is not None:
        by_slot = {request.slot: request for request in one.scheduler.running}
        columns = (done.temperature, done.top_k, done.top_p, done.min_p, done.seeds, done.candidates)
        for row, slot in enumerate(done.slots.tolist()):
            assert [column[row] for column in columns] == pytest.approx(list(owners[by_slot[slot]]))
            assert done.prompt_lens[row] == by_slot[slot].prompt_len
            seen.add(by_slot[slot])
        one.commit()
    assert seen == set(owners)


def test_a_decode_feeds_on_the_token_that_only_the_device_knows() -> None:
    one = world()
    request = free(one, [1, 2], 3)
    planned(one)
    assert [planned(one).tokens.tolist() for _ in range(2)] == [[LAST_DRAWN], [LAST_DRAWN]]
    assert one.plan() is None  # its length is reached, whatever the tokens are
    assert one.scheduler.wants_commit and one.scheduler.in_flight == 3 and request.output == []
    one.drain()
    assert len(request.output) == 3


def test_who_needs_its_tokens_waits_for_them_and_others_need_not() -> None:
    one = world()
    needs, other = free(one, [1, 2], 3, repetition_penalty=2.0), free(one, [1, 2], 3)
    planned(one)
    assert one.scheduler.wants_commit
    assert planned(one).slots.tolist() == [other.slot]
    one.commit()
    assert not one.scheduler.wants_commit
    assert planned(one).tokens.tolist() == [needs.tokens[-1], LAST_DRAWN]
    one.drain()


def test_a_request_of_fixed_changes_need_not_wait() -> None:
    one = world()
    free(one, [1, 2], 3, logit_bias={4: 3.0})
    planned(one)
    done = planned(one)
    assert not one.scheduler.wants_commit
    assert done.adjust is not None
    assert (done.adjust.rows.tolist(), done.adjust.tokens.tolist(), done.adjust.add.tolist()) == ([0], [4], [3.0])
    one.drain()


def test_prompts_are_scored_once_each_also_in_chunks_and_after_preemption() -> None:
    one = world(max_batched_tokens=4, pages=8, max_num_seqs=2)
    first, second = free(one, [3] * 6, 20), free(one, [4, 5, 6, 7, 8, 9, 1], 20, prompt_logprobs=1)
    targets = []
    while one.scheduler.busy:
        done = step(one)
        if len(done.targets):
            assert len(done.targets) == len(done.tokens)
            targets += [token for token in done.targets.tolist() if token >= 0]
    assert second.preemptions and not first.preemptions
    assert targets == [5, 6, 7, 8, 9, 1] and len(second.prompt_scores) == 6


# Who gets in, and who gives way.


def test_the_head_of_the_queue_is_not_overtaken() -> None:
    one = world(pages=10)
    big, bigger, small = free(one, [1] * 20, 5), free(one, [1] * 30, 10), free(one, [1], 1)
    step(one)
    assert one.scheduler.running == [big]  # `small` would fit beside it, but came later than `bigger`
    assert one.scheduler.waiting == [bigger, small]
    one.drain()


def test_admission_leaves_a_page_for_each_that_runs() -> None:
    one = world(pages=4)
    free(one, [1] * 8, 8)
    second = free(one, [1] * 8, 2)
    step(one)
    assert one.scheduler.waiting == [second]  # two pages are free, but the first will need one soon
    one.drain()
    assert one.scheduler.metrics().preemptions == 0


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [0, 1, 2, 3]), ("priority", [1, 3, 0, 2])])
def test_the_order_is_that_of_the_policy(policy: str, order: list[int]) -> None:
    one = world(max_num_seqs=1, policy=policy)
    requests = []
    for priority in (5, -1, 5, 0):
        (request,) = one.submit([1, 2], max_tokens=1, ignore_eos=True, priority=priority)
        requests.append(request)
    ended = [requests.index(one.commit()[0]) for _ in range(4) if one.plan()]
    assert ended == order


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_youngest_of_the_lowest_priority_gives_way(policy: str) -> None:
    """Three that grow into nine pages of which each comes to need four."""
    one = world(pages=9, policy=policy)
    requests = []
    for priority in (2, 0, 2):
        (request,) = one.submit([1] * 4, max_tokens=13, ignore_eos=True, priority=priority)
        requests.append(request)
    one.drain()
    assert [request.preemptions > 0 for request in requests] == [False, False, True]
    one = world(pages=9, policy=policy)
    requests = [one.submit([1] * 4, max_tokens=13, ignore_eos=True, priority=p)[0] for p in (2, 0, 1)]
    one.drain()
    loser = 2 if policy == "fcfs" else 0
    assert [request.preemptions > 0 for request in requests] == [i == loser for i in range(3)]


def test_nobody_gives_way_while_steps_are_in_flight() -> None:
    one = world(pages=4, max_num_seqs=2)
    free(one, [1] * 3, 10)
    second = free(one, [1] * 3, 6)
    step(one)
    for _ in range(5):
        planned(one)  # five tokens more each: all four pages are full
    assert one.plan() is None  # the first needs a fifth, which the second would have to give
    assert one.scheduler.wants_commit and not second.preemptions
    while one.flight:
        one.commit()
    assert second.finish_reason == "length" and not second.preemptions  # reading was enough
    one.drain()


def test_a_preempted_request_keeps_its_place_and_its_output() -> None:
    one = world(pages=6, max_num_seqs=2)
    first, second = free(one, [1] * 4, 16), free(one, [2] * 4, 16)
    third = free(one, [3], 1)
    while not second.preemptions:
        step(one)
    assert one.scheduler.running == [first] and one.scheduler.waiting == [second, third]
    kept = list(second.output)
    assert kept and second.computed == 0 and second.slot == -1 and not second.pages
    one.drain()
    assert second.output[: len(kept)] == kept


def test_who_could_never_fit_is_refused_at_once() -> None:
    one = world(pages=5)
    with pytest.raises(RequestError, match=r"need 6 KV pages of 4 tokens; 5 are available; lower max_tokens"):
        one.scheduler.submit(new_request(1, [1] * 20, SamplingParams(max_tokens=2), LIMITS))
    wide = new_request(2, [1], SamplingParams(max_tokens=2, beams=5, temperature=0), LIMITS)
    with pytest.raises(RequestError, match=r"beams is 5; max_num_seqs allows 4"):
        one.scheduler.check(wide)
    with pytest.raises(RequestError, match=r"beams is 5; max_batched_tokens allows 3"):
        world(max_num_seqs=8, max_batched_tokens=3).scheduler.check(wide)
    assert not one.scheduler.busy


# The end.


def test_a_cancelled_request_frees_its_place_for_the_next_step() -> None:
    one = world(pages=10, max_num_seqs=1)
    first, second = free(one, [1, 2], 30), free(one, [3, 4], 1)
    planned(one)
    one.end(first, "abort")
    assert planned(one).tokens.tolist() == [3, 4]
    assert one.commit() == []
    assert first.output == [] and first.finish_reason == "abort"
    assert one.commit() == [second]
    one.check()


def test_a_stop_string_found_late_discards_what_came_after() -> None:
    one = world()
    request = free(one, [1, 2], 2)
    planned(one)
    planned(one)
    one.commit()
    one.end(request, "stop")
    assert one.commit() == [] and len(request.output) == 1
    last = free(one, [1, 2], 1)
    step(one)
    assert last.finish_reason == "length"
    one.end(last, "stop")  # its last token completed one
    assert last.finish_reason == "stop" and one.scheduler.metrics().finished == {"length": 0, "stop": 2}


def test_logits_that_are_not_finite_end_one_request_only() -> None:
    one = world()
    bad, good = free(one, [1, 2], 4), free(one, [3, 4], 4)
    planned(one)
    planned(one)
    assert one.commit(fault=0) == [bad, good]
    assert bad.finish_reason == "error" and bad.output == []
    assert bad.error == f"request {bad.id}: the logits hold NaN or infinity"
    one.drain()
    assert good.finish_reason == "length" and len(good.output) == 4


def test_after_a_failure_everybody_stands_where_they_stood() -> None:
    one = world()
    request = free(one, [1, 2], 5)
    step(one)
    planned(one)
    planned(one)
    one.abandon(1)
    assert one.scheduler.in_flight == 0 and not one.scheduler.wants_commit
    assert planned(one).tokens.tolist() == [request.tokens[-1]]
    one.drain()


# The whole.


@pytest.mark.parametrize("name", ["pages", "page_size", "max_num_seqs", "max_batched_tokens", "max_len"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"pages": 1, "page_size": 1, "max_num_seqs": 1, "max_batched_tokens": 1, "max_len": 1} | {name: 0}
    with pytest.raises(UsageError, match=f"{name} is 0; it must be at least 1"):
        Scheduler(**sizes)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="policy is 'lifo'; it must be one of fcfs, priority"):
        Scheduler(1, 1, 1, 1, 1, policy="lifo")


def test_metrics_are_plain_numbers() -> None:
    one = world(pages=10, max_num_seqs=1, prefix_cache=True)
    free(one, [1] * 8, 3)
    free(one, [2] * 8, 3)
    step(one)
    planned(one)
    now = one.scheduler.metrics()
    assert (now.waiting, now.running, now.in_flight, now.steps) == (1, 1, 1, 1)
    assert (now.pages_free, now.pages_used, now.pages_cached) == (7, 3, 0)
    assert (now.prompt_tokens, now.output_tokens, now.computed_tokens) == (8, 1, 8)
    one.drain()
    now = one.scheduler.metrics()
    assert (now.pages_free, now.pages_used, now.pages_cached) == (6, 0, 4)
    assert (now.prompt_tokens, now.output_tokens, now.finished) == (16, 6, {"length": 2})
