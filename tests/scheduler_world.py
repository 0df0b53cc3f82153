"""A world to test the scheduler in: an executor whose cache can tell whether every read is right, and a plain model.

In place of keys and values the cache holds a number that stands for the whole text up to a position. Every
request's tokens follow from its own text and seed, so all of them, and every number, are known beforehand:
whatever is shared, copied, preempted, planned ahead or thrown away must not show.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
import pytest

from allotrope.errors import RequestError
from allotrope.runtime.request import Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import LAST_DRAWN, WANT_LAST, WANT_NONE, StepInput, StepOutput
from tests.scheduler_truth import BAD_WORDS, LIMITS, MAX_LEN, Truth, drawn, likely, mixed, number_all, scored, truth_of

GARBAGE = -1


class World:
    """A scheduler, an executor that runs a step when it is launched and tells later, and what must be true."""

    def __init__(self, **sizes: Any) -> None:
        self.scheduler = Scheduler(max_len=MAX_LEN, **sizes)
        self.size: int = self.scheduler.page_size
        self.pool = self.scheduler._holdings.pool
        self.memory = np.full((self.scheduler.pages, self.size), GARBAGE)
        self.last = [GARBAGE] * self.scheduler.max_num_seqs  # what was drawn last in each slot
        self.flight: deque[tuple[StepOutput, np.ndarray, list[int]]] = deque()  # and what the device held before
        self.truths: dict[Request, Truth] = {}  # of all that have not been seen to end
        self.seen: Counter[str] = Counter()
        self._number = 0

    # What can happen.

    def submit(self, prompt: list[int], *, priority: int = 0, salt: int = 0, **params: Any) -> list[Request]:
        """Queue a prompt, `n` times; one that could never fit is refused."""
        asked = SamplingParams(**params)
        words = BAD_WORDS if asked.bad_words else ()
        group = []
        for index in range(asked.n):
            self._number += 1
            group.append(
                new_request(
                    self._number, prompt, asked, LIMITS, index=index, priority=priority, salt=salt, bad_words=words
                )
            )
        first = group[0]
        each, shared = -(-first.positions // self.size), len(prompt) // self.size
        needed = each if asked.beams == 1 else shared + asked.beams * (each - shared)
        room = min(self.scheduler.max_num_seqs, self.scheduler.max_batched_tokens)
        if needed > self.scheduler.pages or asked.beams > room:
            with pytest.raises(RequestError, match=r"need \d+ KV pages of|beams is \d"):
                self.scheduler.submit_group(first, group[1:])
            self.seen["refused"] += 1
            return []
        self.scheduler.submit_group(first, group[1:])
        long = any(len(prompt) > length for length in self.scheduler.rotary_lengths)
        start = mixed(mixed(17, salt), len(prompt) if long else 0)
        for request in group:
            self.truths[request] = truth_of(request, start)
            self.truths[request].launched = len(prompt)
        self.seen["submitted"] += asked.n
        return group

    def plan(self) -> StepInput | None:
        """Plan a step and launch it."""
        waiting, flying = set(self.scheduler.waiting), self.scheduler.in_flight
        step = self.scheduler.plan_step()
        if step is None:
            assert self.scheduler.in_flight == flying
            assert self.scheduler.wants_commit if flying else not self.scheduler.busy
            return None
        assert self.scheduler.in_flight == flying + 1
        self._admitted_in_order(waiting)
        self.flight.append((self._run(step), self.memory.copy(), list(self.last)))
        return step

    def commit(self, fault: int | None = None) -> list[Request]:
        """Read the oldest step; row `fault` held NaN."""
        output, _, _ = self.flight.popleft()
        rows = self.scheduler._flight[0].requests
        before = {request: (len(request.tokens), request.finish_reason) for request in rows}
        struck = None
        if fault is not None:
            output.finite[fault % len(output.finite)] = False
            struck = rows[fault % len(output.finite)]
        changed = self.scheduler.commit(output)
        assert len(set(changed)) == len(changed)
        for request, (tokens, ended) in before.items():
            if ended is None and request is struck:
                assert request.finish_reason == "error" and "NaN" in (request.error or "")
                assert request.error is not None and f"request {request.id}" in request.error
                self.truths[request].touched = True
            moved = len(request.tokens) > tokens or request.finish_reason != ended
            assert moved == (request in changed) and not (moved and ended)
        return changed

    def abandon(self, done: int) -> None:
        """The steps in flight fail; the device has carried out the first `done` of them."""
        if done < len(self.flight):
            # What was there before the step that failed; a later one's snapshot holds what earlier ones wrote.
            _, self.memory, self.last = self.flight[done]
        self.flight.clear()
        self.scheduler.abandon()
        for request, truth in self.truths.items():
            truth.launched = len(request.tokens)

    def end(self, request: Request, reason: str) -> None:
        """End a request from outside."""
        before = request.finish_reason
        self.scheduler.finish(request, reason)
        overruled = (before, reason) == ("length", "stop")
        assert request.finish_reason == (reason if before is None or overruled else before)
        if before is None and request in self.truths:
            self.truths[request].touched = True

    def drain(self) -> None:
        """Let everything come to its end, in a number of steps that shows that nobody is preempted for ever."""
        owed = sum(2 + r.positions for r in self.truths if r.finish_reason is None)
        for _ in range(20 * owed + len(self.flight) + 1):
            if self.flight and (self.scheduler.wants_commit or len(self.flight) > 2 or not self.scheduler.busy):
                self.commit()
            elif self.scheduler.busy:
                self.plan()
            else:
                break
            self.check()
        assert not self.scheduler.busy and not self.flight
        assert not self.truths
        assert self.pool.used == 0 and self.scheduler._holdings.promised == 0

    # The executor.

    def _owner(self, slot: int) -> tuple[Request, list[int], list[int]]:
        """Whose row a slot is, its whole text as far as it is determined, and the pages that it has."""
        for request in self.scheduler.running:
            beams = request.beams
            if beams is not None and beams.tails and slot in beams.slots:
                lane = beams.slots.index(slot)
                search = request.group
                assert search is not None
                return request, request.tokens + list(search.outputs()[lane]), request.pages + beams.tails[lane]
            if request.slot == slot:
                return request, self.truths[request].tokens, request.pages
        raise AssertionError(f"nobody runs in slot {slot}")

    def _run(self, step: StepInput) -> StepOutput:
        """Copy, then write, then read, all checked. Writes come first for all rows, as on a real device."""
        copies = step.page_copies.tolist()
        sources, targets = {source for source, _ in copies}, [target for _, target in copies]
        assert len(set(targets)) == len(targets) and not sources & set(targets)
        assert all(self.pool.holders(page) for page in sources) and all(self.pool.holders(p) == 1 for p in targets)
        for source, target in copies:
            self.memory[target] = self.memory[source]
        self.seen["copies"] += len(copies)
        starts, slots = step.starts.tolist(), step.slots.tolist()
        assert len(set(slots)) == len(slots) <= self.scheduler.max_num_seqs
        assert 0 < starts[-1] == len(step.tokens) <= self.scheduler.max_batched_tokens
        texts = [self._write(step, row, starts[row], starts[row + 1]) for row in range(step.rows)]
        tokens, logprobs = np.full(step.rows, -1, np.int32), np.full(step.rows, np.nan, np.float32)
        candidates, scores = [], []
        for row, (request, numbers, text) in enumerate(texts):
            end = len(text)
            assert (self._read(step, row)[:end] == numbers[:end]).all(), f"row {row} reads another's cache"
            number = int(numbers[end - 1])
            if step.sample[row]:
                assert step.want[row] == WANT_LAST
                tokens[row] = self.last[slots[row]] = drawn(number, request.seed, self._adjustments(step, row))
                logprobs[row] = number % 4096
            candidates.append(likely(number, int(step.candidates[row])))
            scores.append(self._scores(step, row, starts[row], starts[row + 1], numbers))
        return StepOutput(tokens, logprobs, tuple(candidates), np.ones(step.rows, np.bool_), tuple(scores))

    def _write(self, step: StepInput, row: int, start: int, stop: int) -> tuple[Request, np.ndarray, list[int]]:
        """Write the row's new tokens; returns whose it is, the numbers of its text, and the text so far."""
        slot, first = int(step.slots[row]), int(step.first[row])
        request, text, held = self._owner(slot)
        truth, end = self.truths[request], first + stop - start
        tokens = step.tokens[start:stop].tolist()
        if tokens[-1] == LAST_DRAWN:
            assert not request.needs_tokens, "planned before its last token was known"
            tokens[-1] = self.last[slot]
        assert tokens == text[first:end], "not the text's tokens"
        assert end <= request.positions and end == request.planned
        search = request.group is not None
        draws = end == (len(text) if search else truth.launched)
        truth.launched += draws
        assert step.sample[row] == (draws and not search)
        assert step.want[row] == (WANT_LAST if draws else WANT_NONE)
        assert step.prompt_lens[row] == request.prompt_len and step.seeds[row] == request.seed
        wanted = (request.group.wanted if request.group else request.params.logprobs or 0) if draws else 0
        assert step.candidates[row] == wanted
        numbers = truth.numbers if not search else np.array(number_all(truth.start, text))
        pages = step.pages[row].tolist()
        assert pages[: -(-end // self.size)] == held[: -(-end // self.size)]
        for position in range(first, end):
            page = pages[position // self.size]
            assert self.pool.holders(page) == 1, "a shared page is written"
            self.memory[page, position % self.size] = numbers[position]
        self.seen["tokens"] += end - first
        return request, numbers, text[:end]

    def _read(self, step: StepInput, row: int) -> np.ndarray:
        return self.memory[step.pages[row]].reshape(-1)

    def _adjustments(self, step: StepInput, row: int) -> tuple[Any, Any, Any] | None:
        if step.adjust is None or row not in step.adjust.rows:
            return None
        mine = step.adjust.rows == row
        return step.adjust.tokens[mine], step.adjust.divide[mine], step.adjust.add[mine]

    def _scores(self, step: StepInput, row: int, start: int, stop: int, numbers: np.ndarray) -> tuple[Any, ...]:
        if not len(step.targets):
            return ()
        first, count = int(step.first[row]), int(step.target_candidates[row])
        return tuple(
            scored(int(numbers[first + i]), target, count)
            for i, target in enumerate(step.targets[start:stop].tolist())
            if target >= 0
        )

    # What must be true at any time.

    def check(self) -> None:
        """All that holds between any two things that happen."""
        self._check_pages()
        self._check_order()
        for truth in tuple(self.truths.values()):
            self._check_request(truth)
        # Whoever still reads a page that nobody holds will be found out.
        free = [page for page in range(self.pool.total) if not self.pool.holders(page) and page not in self.pool._idle]
        self.memory[free] = GARBAGE

    def _check_pages(self) -> None:
        scheduler, pool, held = self.scheduler, self.pool, Counter[int]()
        slots = list(scheduler._holdings._slots)
        owed = 0
        for request in scheduler.running:
            held.update(request.pages)
            if request.beams is None:
                slots.append(request.slot)
            else:
                slots += request.beams.slots
                owed += request.beams.owed
                assert request.beams.owed >= 0
                for tail in request.beams.tails:
                    held.update(tail)
        assert pool._holders == [held[page] for page in range(pool.total)]
        assert pool.free + pool.used + pool.cached == pool.total and pool.used == len(held)
        assert len(set(pool._free)) == pool.free and not set(pool._free) & (set(held) | set(pool._idle))
        assert not set(pool._idle) & set(held)
        assert sorted(slots) == list(range(scheduler.max_num_seqs))
        assert scheduler._holdings.promised == owed <= pool.available
        cache = scheduler._holdings.cache
        if cache is None:
            assert not pool._idle
            return
        assert {node.page for node in cache._nodes.values()} == set(cache._of_page)
        assert {page for page in range(pool.total) if pool._kept[page]} == set(cache._of_page) >= set(pool._idle)

    def _check_order(self) -> None:
        scheduler = self.scheduler
        for queue in (scheduler.running, scheduler.waiting):
            keys = [request.key for request in queue]
            assert keys == sorted(keys)
        there = [*scheduler.running, *scheduler.waiting]
        assert len(there) == len(set(there))
        assert set(there) == {request for request in self.truths if request.finish_reason is None}
        assert all(request.slot < 0 and not request.pages for request in scheduler.waiting)

    def _admitted_in_order(self, waiting: set[Request]) -> None:
        """Nobody was overtaken but by those who need not wait for another to compute their prompt."""
        admitted = [request.key for request in self.scheduler.running if request in waiting]
        left = [request for request in self.scheduler.waiting if admitted and request.key < max(admitted)]
        assert all(request.parent is not None and request.parent.slot >= 0 for request in left)

    def _check_request(self, truth: Truth) -> None:
        request, (output, reason) = truth.request, truth.ends
        mine = request.output
        assert mine == output[: len(mine)], "not the tokens that the request gets alone"
        if request.group is None and len(mine) > truth.checked:
            ends = truth.numbers[request.prompt_len - 1 + truth.checked : request.prompt_len + len(mine) - 1]
            assert request.logprobs[truth.checked :] == (ends % 4096).tolist()
            count = request.params.logprobs or 0
            assert request.candidates[truth.checked :] == [likely(int(n), count) for n in ends]
            truth.checked = len(mine)
        assert request.prompt_scores == truth.scores[: len(request.prompt_scores)]
        if request.finish_reason is None:
            assert 0 <= request.computed <= request.planned
            if request.group is None:
                assert request.planned <= truth.launched == len(request.tokens) + request.pending
            else:
                assert not request.pending or not request.beams.tails
            return
        assert not request.pages and request.slot == -1 and request.beams is None
        if not truth.touched:
            assert (mine, request.finish_reason) == (output, reason)
            if request.params.prompt_logprobs is not None and not request.index:
                assert request.prompt_scores == truth.scores
        # It is watched until nothing of it is in flight: no token may come after its end.
        truth.ended_with = mine if truth.ended_with is None else truth.ended_with
        assert mine == truth.ended_with
        if not any(request in draft.requests for draft in self.scheduler._flight):
            self.seen[request.finish_reason] += 1
            self.seen["preempted"] += request.preemptions
            self.seen["cached"] += request.cached_tokens
            del self.truths[request]
