"""The scheduler as a state machine, against a simulated cache in which every position must be its request's own."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from allotrope.errors import RequestError, UsageError
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import WANT_LAST, WANT_NONE, StepInput, StepOutput

VOCAB, MAX_LEN, PAGE, STOP = 50, 40, 4, 7
LIMITS = Limits(VOCAB, MAX_LEN, (STOP,))


def next_token(tokens: list[int]) -> int:
    """The simulated model: the next token follows from all tokens before it."""
    return (sum((i + 3) * token for i, token in enumerate(tokens)) + len(tokens)) % VOCAB


class Model:
    """A cache of token ids where keys and values would be, and a next token that reads them through the pages."""

    def __init__(self, pages: int) -> None:
        self.cache = np.full((pages, PAGE), -1)

    def run(self, step: StepInput) -> StepOutput:
        drawn = np.full(step.rows, -1, np.int32)
        for row in range(step.rows):
            tokens = step.tokens[step.starts[row] : step.starts[row + 1]]
            first, pages = int(step.first[row]), step.pages[row]
            for i, token in enumerate(tokens, start=first):
                assert pages[i // PAGE] >= 0
                self.cache[pages[i // PAGE], i % PAGE] = token
            end = first + len(tokens)
            if step.sample[row]:
                drawn[row] = next_token([int(self.cache[pages[i // PAGE], i % PAGE]) for i in range(end)])
        return StepOutput(drawn, np.zeros(step.rows, np.float32), ((),) * step.rows, np.ones(step.rows, np.bool_))


def alone(prompt: list[int], max_tokens: int) -> list[int]:
    """What a request must get, from the model alone."""
    tokens = list(prompt)
    for _ in range(min(max_tokens, max(MAX_LEN - len(prompt), 1))):
        tokens.append(next_token(tokens))
        if tokens[-1] == STOP:
            break
    return tokens[len(prompt) :]


def make(number: int, prompt: list[int], max_tokens: int, **params: object) -> Request:
    return new_request(number, prompt, SamplingParams(max_tokens=max_tokens, **params), LIMITS)


class Machine(RuleBasedStateMachine):
    """Submissions, cancellations and ends from outside at any moment, also while a step is in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.ended_with: dict[int, int] = {}  # tokens that an ended request had
        self.admitted: list[int] = []
        self.scheduler: Scheduler | None = None

    @precondition(lambda self: self.scheduler is None)
    @rule(pages=st.integers(1, 30), seqs=st.integers(1, 5), budget=st.integers(1, 20))
    def start(self, pages: int, seqs: int, budget: int) -> None:
        self.scheduler = Scheduler(pages, PAGE, seqs, budget, MAX_LEN)
        self.model = Model(pages)

    @precondition(lambda self: self.scheduler is not None)
    @rule(prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=MAX_LEN), max_tokens=st.integers(1, 50))
    def submit(self, prompt: list[int], max_tokens: int) -> None:
        request = make(len(self.requests), prompt, max_tokens)
        needed = -(-request.positions // PAGE)
        if needed > self.scheduler.pages:
            with pytest.raises(RequestError, match=f"need {needed} KV pages.*{self.scheduler.pages} are available"):
                self.scheduler.submit(request)
        else:
            self.scheduler.submit(request)
            self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 1000), reason=st.sampled_from(["abort", "stop"]))
    def end_from_outside(self, which: int, reason: str) -> None:
        request = self.requests[which % len(self.requests)]
        before = request.finish_reason
        self.scheduler.finish(request, reason)
        assert request.finish_reason == (
            reason if before in (None, "length") and reason == "stop" else before or reason
        )

    @precondition(lambda self: self.scheduler is not None)
    @rule(which=st.none() | st.integers(0, 1000), fail=st.booleans())
    def step(self, which: int | None, fail: bool) -> None:
        step = self.scheduler.plan_step()
        if step is None:
            assert not self.scheduler.busy
            return
        self.check_step(step)
        if fail and which is None:
            self.scheduler.abandon()
            return
        output = self.model.run(step)
        running = list(self.scheduler.running)
        if which is not None:
            self.scheduler.cancel(running[which % len(running)])
        changed = self.scheduler.commit(output)
        assert all(request.finish_reason != "abort" for request in changed)

    def check_step(self, step: StepInput) -> None:
        running = {request.slot: request for request in self.scheduler.running}
        counts = np.diff(step.starts)
        assert counts.min() >= 1 and counts.sum() == len(step.tokens) <= self.scheduler.max_batched_tokens
        assert len(set(step.slots.tolist())) == step.rows <= self.scheduler.max_num_seqs
        assert [running[slot] for slot in step.slots.tolist()] == self.scheduler.running[: step.rows]
        for row, slot in enumerate(step.slots.tolist()):
            request, end = running[slot], int(step.first[row] + counts[row])
            assert step.first[row] == request.computed
            assert (
                step.tokens[step.starts[row] : step.starts[row + 1]].tolist() == request.tokens[request.computed : end]
            )
            assert step.sample[row] == (end == len(request.tokens))
            assert step.want[row] == (WANT_LAST if step.sample[row] else WANT_NONE)
            used = -(-end // PAGE)
            assert step.pages[row, :used].tolist() == request.pages[:used]
            assert step.prompt_lens[row] == request.prompt_len
        # Whoever is left out is left out because the budget is spent.
        if step.rows < len(self.scheduler.running):
            assert len(step.tokens) == self.scheduler.max_batched_tokens

    @invariant()
    def pages_and_slots(self) -> None:
        if self.scheduler is None:
            return
        held = [page for request in self.requests for page in request.pages]
        assert len(held) == len(set(held))
        assert self.scheduler.pool.free + len(held) == self.scheduler.pages
        slots = [request.slot for request in self.scheduler.running]
        assert len(slots) == len(set(slots)) and all(0 <= slot < self.scheduler.max_num_seqs for slot in slots)

    @invariant()
    def ended_means_ended(self) -> None:
        for request in self.requests:
            if request.finish_reason is not None:
                assert not request.pages and request.slot == -1
                assert self.ended_with.setdefault(request.id, len(request.tokens)) == len(request.tokens)

    @invariant()
    def first_come_first_served(self) -> None:
        if self.scheduler is None:
            return
        order = [request.id for request in [*self.scheduler.running, *self.scheduler.waiting]]
        assert order == sorted(order)
        assert {r.id for r in self.requests if r.finish_reason is None} == set(order)

    @invariant()
    def outputs_are_as_alone(self) -> None:
        for request in self.requests:
            expected = alone(request.tokens[: request.prompt_len], request.params.max_tokens)
            assert request.output == expected[: len(request.output)]
            if request.finish_reason == "length" or request.stop_reason == STOP:
                assert request.output == expected
                assert (request.stop_reason == STOP) == (expected[-1] == STOP)

    def teardown(self) -> None:
        if self.scheduler is None:
            return
        owed = sum(len(r.tokens) + r.max_tokens for r in self.requests if r.finish_reason is None)
        for _ in range(owed):  # at least one token is computed per step
            step = self.scheduler.plan_step()
            if step is None:
                break
            self.scheduler.commit(self.model.run(step))
        assert not self.scheduler.busy and self.scheduler.pool.free == self.scheduler.pages
        assert all(request.finish_reason for request in self.requests)
        self.outputs_are_as_alone()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def drain(scheduler: Scheduler) -> int:
    model, steps = Model(scheduler.pages), 0
    while (step := scheduler.plan_step()) is not None:
        scheduler.commit(model.run(step))
        steps += 1
    return steps


def test_prefill_is_packed_with_decodes_and_not_padded() -> None:
    scheduler = Scheduler(100, PAGE, 4, 16, MAX_LEN)
    first, second = make(1, [1, 2, 3], 8, ignore_eos=True), make(2, list(range(8, 38)), 2, ignore_eos=True)
    model = Model(100)
    scheduler.submit(first)
    step = scheduler.plan_step()
    assert step is not None and step.tokens.tolist() == [1, 2, 3]
    scheduler.commit(model.run(step))
    scheduler.submit(second)
    counts = []
    while (step := scheduler.plan_step()) is not None:
        counts.append(np.diff(step.starts).tolist())
        scheduler.commit(model.run(step))
    assert counts == [[1, 15], [1, 15], [1, 1], [1], [1], [1], [1]]


def test_each_row_carries_its_own_requests_parameters() -> None:
    """Also in a slot that another request has used before."""
    scheduler = Scheduler(100, PAGE, 3, 64, MAX_LEN)
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "logprobs")
    values = [(0.5 + i, 3 + i, 0.1 + i / 20, i / 20, 1000 + i, i) for i in range(9)]
    for i, row in enumerate(values):
        scheduler.submit(make(i, [1] * (i + 1), 1 + i % 3, ignore_eos=True, **dict(zip(names, row, strict=True))))
    model, seen = Model(100), set()
    while (step := scheduler.plan_step()) is not None:
        columns = (step.temperature, step.top_k, step.top_p, step.min_p, step.seeds, step.candidates)
        for row, request in enumerate(scheduler.running[: step.rows]):
            assert [column[row] for column in columns] == pytest.approx(list(values[request.id]))
            assert step.prompt_lens[row] == request.id + 1
            seen.add(request.id)
        scheduler.commit(model.run(step))
    assert seen == set(range(9))


def test_the_head_of_the_queue_is_not_overtaken() -> None:
    scheduler = Scheduler(10, PAGE, 4, 64, MAX_LEN)
    big, bigger, small = make(1, [1] * 20, 5), make(2, [1] * 30, 10), make(3, [1], 1)
    for request in (big, bigger, small):
        scheduler.submit(request)
    scheduler.plan_step()
    assert scheduler.running == [big]  # `small` would fit beside it, but came later than `bigger`
    assert list(scheduler.waiting) == [bigger, small]


def test_a_cancelled_request_frees_its_place_for_the_next_step() -> None:
    scheduler = Scheduler(10, PAGE, 1, 64, MAX_LEN)
    one, two = make(1, [1, 2], 30), make(2, [3, 4], 1)
    scheduler.submit(one)
    scheduler.submit(two)
    step = scheduler.plan_step()
    assert step is not None
    scheduler.cancel(one)
    assert scheduler.commit(Model(10).run(step)) == []
    assert one.output == [] and one.finish_reason == "abort"
    step = scheduler.plan_step()
    assert step is not None and step.tokens.tolist() == [3, 4]


def test_logits_that_are_not_finite_end_one_request_only() -> None:
    scheduler = Scheduler(20, PAGE, 2, 64, MAX_LEN)
    bad, good = make(41, [1, 2], 4), make(42, [3, 4], 4, ignore_eos=True)
    scheduler.submit(bad)
    scheduler.submit(good)
    step = scheduler.plan_step()
    assert step is not None
    output = Model(20).run(step)
    output.finite[0] = False
    scheduler.commit(output)
    assert bad.finish_reason == "error" and bad.output == []
    assert bad.error is not None and "request 41" in bad.error and "NaN" in bad.error
    drain(scheduler)
    assert good.finish_reason == "length" and len(good.output) == 4


def test_two_plans_without_a_commit_are_a_mistake() -> None:
    scheduler = Scheduler(20, PAGE, 2, 64, MAX_LEN)
    scheduler.submit(make(1, [1], 2))
    scheduler.plan_step()
    with pytest.raises(RuntimeError, match="has not been committed"):
        scheduler.plan_step()


@pytest.mark.parametrize("name", ["pages", "page_size", "max_num_seqs", "max_batched_tokens", "max_len"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes = {"pages": 1, "page_size": 1, "max_num_seqs": 1, "max_batched_tokens": 1, "max_len": 1} | {name: 0}
    with pytest.raises(UsageError, match=f"{name} is 0; it must be at least 1"):
        Scheduler(**sizes)


def test_a_step_of_64_rows_is_scheduled_quickly() -> None:
    scheduler = Scheduler(64 * 10, PAGE, 64, 2048, MAX_LEN)
    for i in range(64):
        scheduler.submit(make(i, [1, 2, 3], 36, ignore_eos=True))
    output = StepOutput(np.full(64, 1, np.int32), np.zeros(64, np.float32), ((),) * 64, np.ones(64, np.bool_))
    scheduler.plan_step()
    scheduler.commit(output)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        scheduler.plan_step()
        scheduler.commit(output)
        times.append(time.perf_counter() - start)
    assert min(times) < 150e-6  # the least of many: the machine may be busy
