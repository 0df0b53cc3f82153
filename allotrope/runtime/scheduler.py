"""The scheduler: who takes part in the next step, and with how many tokens. Integers, no tensors.

First come, first served. A request is admitted when the pages for its prompt and its whole output are
free, so whoever runs can finish and nobody is ever preempted. Each step packs, in order of arrival, as
many uncomputed tokens of each running request as the token budget allows: one for a request that
decodes, a chunk for one that is still in its prompt. Nothing is padded.

    submit → waiting → (slot and pages) running → finished (slot and pages back)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from allotrope.errors import NumericalError, RequestError, UsageError
from allotrope.runtime.pages import PagePool
from allotrope.runtime.request import Request
from allotrope.runtime.rows import RowTable
from allotrope.runtime.step import StepInput, StepOutput


@dataclass
class Scheduler:
    """Owns every request's progress, its slot and its pages."""

    pages: int
    page_size: int
    max_num_seqs: int  # the most requests that run at once
    max_batched_tokens: int  # the most tokens in a step
    max_len: int
    waiting: deque[Request] = field(default_factory=deque, init=False)
    running: list[Request] = field(default_factory=list, init=False)  # in order of arrival

    def __post_init__(self) -> None:
        for name in ("pages", "page_size", "max_num_seqs", "max_batched_tokens", "max_len"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        self.pool = PagePool(self.pages)
        self._slots = list(range(self.max_num_seqs - 1, -1, -1))
        self._table = RowTable(self.max_num_seqs, self._pages_for(self.max_len), self.page_size)
        self._planned: list[tuple[Request, int, bool]] = []  # the step in flight: request, tokens, draws one

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def submit(self, request: Request) -> None:
        """Queue a request; one that could never fit is refused now."""
        self.check(request)
        self.waiting.append(request)

    def check(self, request: Request) -> None:
        """Refuse a request that could never fit, however long it waited."""
        needed = self._pages_for(request.positions)
        if needed > self.pages:
            raise RequestError(
                f"prompt and output need {needed} KV pages of {self.page_size} tokens; {self.pages} are available",
                remedy="lower max_tokens, shorten the prompt or raise kv_memory",
            )

    def cancel(self, request: Request) -> None:
        """End a request now; it gets no further token, not even from a step in flight."""
        self.finish(request, "abort")

    def finish(self, request: Request, reason: str, stop_reason: str | int | None = None) -> None:
        """End a request that has not ended, and free what it holds.

        What a step in flight still writes to its pages harms nobody: steps run in order, and the pages'
        next holder writes each position before reading it.
        """
        if request.finish_reason is not None:
            if (request.finish_reason, reason) == ("length", "stop"):  # its last token completed a stop string
                request.finish_reason, request.stop_reason = reason, stop_reason
            return
        request.finish_reason, request.stop_reason = reason, stop_reason
        if request.slot < 0:
            self.waiting.remove(request)
            return
        self.running.remove(request)
        self.pool.give(request.pages)
        self._slots.append(request.slot)
        request.pages, request.slot = [], -1

    def plan_step(self) -> StepInput | None:
        """The next step's input; None if there is nothing to compute. Each plan must be committed."""
        if self._planned:
            raise RuntimeError("the step in flight has not been committed")
        budget = self.max_batched_tokens
        tokens: list[int] = []
        for request in self._admitted():
            count = min(len(request.tokens) - request.computed, budget)
            budget -= count
            end = request.computed + count
            tokens += request.tokens[request.computed : end]
            self._planned.append((request, count, end == len(request.tokens)))
            if not budget:
                break
        if not self._planned:
            return None
        return self._table.gather(self._planned, tokens)

    def abandon(self) -> None:
        """Forget the step in flight, which failed. Its requests stand where they stood; planning again is safe."""
        self._planned = []

    def commit(self, output: StepOutput) -> list[Request]:
        """Take in the step's results; returns who has a new token or ended. Who was ended meanwhile gets nothing."""
        planned, self._planned = self._planned, []
        changed = []
        tokens, logprobs, finite = output.tokens.tolist(), output.logprobs.tolist(), output.finite.tolist()
        for row, (request, count, draws) in enumerate(planned):
            if request.finish_reason is not None:
                continue
            request.computed += count
            if not finite[row]:
                fault = NumericalError("the logits hold NaN or infinity", where=f"request {request.id}")
                request.error = str(fault)
                self.finish(request, "error")
                changed.append(request)
            elif draws:
                request.tokens.append(tokens[row])
                request.logprobs.append(logprobs[row])
                request.candidates.append(output.candidates[row])
                self._finish_if_done(request, tokens[row])
                changed.append(request)
        return changed

    def _admitted(self) -> list[Request]:
        """The running, and after them whoever waits and can be admitted, strictly in order of arrival."""
        budget = self.max_batched_tokens - sum(len(r.tokens) - r.computed for r in self.running)
        while self.waiting and self._slots and budget > 0:
            request = self.waiting[0]
            needed = self._pages_for(request.positions)
            if needed > self.pool.free:
                break
            self.waiting.popleft()
            request.pages, request.slot = self.pool.take(needed), self._slots.pop()
            self._table.admit(request)
            self.running.append(request)
            budget -= len(request.tokens)
        return self.running

    def _finish_if_done(self, request: Request, token: int) -> None:
        if token in request.stop_ids:
            self.finish(request, "stop", token)
        elif len(request.tokens) - request.prompt_len >= request.max_tokens:
            self.finish(request, "length")

    def _pages_for(self, positions: int) -> int:
        return -(-positions // self.page_size)
