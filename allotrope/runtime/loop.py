"""The loop: plan a step, run it, commit it, turn its tokens into text. The one batch path."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from allotrope.runtime.outputs import CompletionOutput, Logprob, RequestOutput
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import StepInput, StepOutput
from allotrope.runtime.stops import TextStream

if TYPE_CHECKING:
    from allotrope.tokenizers import Tokenizer


class Executor(Protocol):
    """Whatever computes a step."""

    def run(self, step: StepInput) -> StepOutput:
        """Compute one step."""
        ...


@dataclass(eq=False)
class Generation:
    """One request and its text. `text` only grows, by what is safe to show; `shown` counts the tokens it covers."""

    request: Request
    prompt: str | None
    stream: TextStream
    text: str = ""
    shown: int = 0


class Loop:
    """Drives one executor. `step` is the whole decode path; everything else is bookkeeping.

    Threads may share a loop: whoever steps holds `lock`, and advances the others' requests, too. A reader of
    a generation that is not its own thread's alone holds it as well, else it may see a token without its text.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, tokenizer: Tokenizer, limits: Limits) -> None:
        self.scheduler = scheduler
        self.limits = limits
        self.lock = threading.RLock()
        self._executor = executor
        self._tokenizer = tokenizer
        self._live: dict[int, Generation] = {}
        self._submitted = 0

    @property
    def busy(self) -> bool:
        """Whether another step has anything to do."""
        return self.scheduler.busy

    def prepare(self, prompt: str | None, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        """Check a request against the engine's limits without queueing it."""
        with self.lock:
            self._submitted += 1
            number = self._submitted
        request = new_request(number, token_ids, params, self.limits)
        self.scheduler.check(request)
        detokenizer = self._tokenizer.stream(request.tokens, params.skip_special_tokens)
        return Generation(request, prompt, TextStream(detokenizer, params.stop))

    def submit(self, generation: Generation) -> None:
        """Queue a prepared request."""
        with self.lock:
            self.scheduler.submit(generation.request)
            self._live[generation.request.id] = generation

    def cancel(self, generation: Generation) -> None:
        """End a request now; it gets nothing more."""
        with self.lock:
            self.scheduler.cancel(generation.request)
            self._live.pop(generation.request.id, None)

    def step(self) -> list[Generation]:
        """Compute one step. Returns who has a new token or ended."""
        with self.lock:
            step = self.scheduler.plan_step()
            if step is None:
                return []
            try:
                output = self._executor.run(step)
            except BaseException:
                self.scheduler.abandon()
                raise
            return [self._show(self._live[request.id]) for request in self.scheduler.commit(output)]

    def _show(self, generation: Generation) -> Generation:
        """Turn new tokens into text, look for stop strings, and let go of who has ended."""
        request, stream, added = generation.request, generation.stream, ""
        while request.prompt_len + generation.shown < len(request.tokens) and stream.found is None:
            token = request.tokens[request.prompt_len + generation.shown]
            generation.shown += 1
            if token not in request.stop_ids:
                added += stream.push(token)
        if request.finish_reason is not None and stream.found is None:
            added += stream.close()
        if stream.found is not None:
            self.scheduler.finish(request, "stop", stream.found)
        if request.finish_reason is not None:
            del self._live[request.id]
        generation.text += added
        return generation

    def output(self, generation: Generation) -> RequestOutput:
        """The request as its caller sees it, finished or not."""
        request = generation.request
        completion = CompletionOutput(
            index=0,
            text=generation.text,
            token_ids=tuple(request.output),
            cumulative_logprob=sum(request.logprobs),
            logprobs=None if request.params.logprobs is None else self._logprobs(request),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            seed=request.seed,
        )
        return RequestOutput(
            request_id=str(request.id),
            prompt=generation.prompt,
            prompt_token_ids=tuple(request.tokens[: request.prompt_len]),
            outputs=(completion,),
            finished=request.finish_reason is not None,
            error=request.error,
        )

    def _logprobs(self, request: Request) -> tuple[dict[int, Logprob], ...]:
        rows = []
        for token, logprob, candidates in zip(request.output, request.logprobs, request.candidates, strict=True):
            ranks = {other: rank for rank, (other, _) in enumerate(candidates, start=1)}
            values = {token: logprob} | {other: value for other, value in candidates if other != token}
            rows.append(
                {
                    other: Logprob(value, ranks.get(other), self._tokenizer.decode([other], False))
                    for other, value in values.items()
                }
            )
        return tuple(rows)
