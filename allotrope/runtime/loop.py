"""The loop: launch the next step, take in the ones before it, turn their tokens into text. The one batch path.

Two steps are usually under way, so that the device never waits for the host:

    device   [ step 1 ][ step 2 ][ step 3 ] …
    host     launch 1, launch 2, take in 1, launch 3, take in 2 …

What a step does not need to know, it does not wait for: a request that decodes feeds on the token that the
device drew last. So whether a request has ended shows a step late, and what was computed for it meanwhile is
discarded. `skip_step` and `check_step` look less often still: the first steps after an idle moment are not
looked at, and after them only at every so many, all but the newest at once. Results are the same for all.

A CPU computes while it launches. There steps that follow from each other are one launch, as many as fit into the time
for which everybody's tokens may be held back.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from allotrope.runtime.adjust import bad_word_ids
from allotrope.runtime.generation import Generation
from allotrope.runtime.options import MOST_IN_FLIGHT
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import Executor, Pending, StepInput
from allotrope.runtime.stops import TextStream

if TYPE_CHECKING:
    from allotrope.tokenizers import Tokenizer


HOLD_S = 0.05  # where only whole answers are looked at
STREAMED_HOLD_S = 0.004  # where somebody reads along


@dataclass(frozen=True)
class _Launched:
    """A step in flight."""

    step: StepInput
    pending: Pending
    follows: bool  # there was work all the time since the step before: the device should not have stood still


class Loop:
    """Drives one executor. `step` is the whole decode path; everything else is bookkeeping.

    Threads may share a loop: whoever steps holds `lock`, and advances the others' requests, too. A reader of
    a generation that is not its own thread's alone holds it as well, else it may see a token without its text.

    A step that fails raises for whoever stepped. All steps in flight are then forgotten and their requests stand
    where they stood, so stepping again is safe; `suspects` are those that took part in the one that failed and
    have not ended, or None if no step failed but the loop itself.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        limits: Limits,
        *,
        skip_step: int = 0,
        check_step: int = 1,
    ) -> None:
        self.scheduler = scheduler
        self.limits = limits
        self.lock = threading.RLock()
        self.suspects: list[Generation] | None = None
        self._executor, self._tokenizer = executor, tokenizer
        self._skip_step, self._check_step = skip_step, check_step
        self._numbers = itertools.count(1)
        self._live: dict[Request, Generation] = {}  # in order of submission
        self._flight: deque[_Launched] = deque()
        self._launched = 0  # since the last idle moment
        self._at_work: StepInput | None = None  # the step that is being launched or waited for
        self._stepping = False
        self._leaving: list[tuple[Generation, str]] = []  # who was ended in the middle of a step, and how
        self._busy_s = self._idle_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether another step has anything to do."""
        return self.scheduler.busy or bool(self._flight)

    def number(self) -> int:
        """A number that no request has."""
        return next(self._numbers)

    def prepare(
        self,
        prompt: str | None,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        index: int = 0,
        priority: int = 0,
        number: int | None = None,
    ) -> Generation:
        """Check a request against the engine's limits without queueing it; `index` is its caller's."""
        words = bad_word_ids(params.bad_words, lambda text: self._tokenizer.encode(text, special=False))
        own: dict[str, Any] = {"priority": priority, "bad_words": words}
        first = new_request(number or self.number(), token_ids, params, self.limits, **own)
        requests = [first]
        if first.group is None and params.n > 1:
            alike = replace(params, seed=first.seed, prompt_logprobs=None)  # the first's are everyone's
            more = range(1, params.n)
            requests += [new_request(self.number(), token_ids, alike, self.limits, index=i, **own) for i in more]
        for request in requests:
            self.scheduler.check(request)

        def stream() -> TextStream:
            detokenizer = self._tokenizer.stream(first.tokens[: first.prompt_len], params.skip_special_tokens)
            return TextStream(detokenizer, params.stop, free=params.min_tokens)

        return Generation(requests, prompt, index, stream, self._spell)

    def submit(self, generation: Generation, hold_s: float = 0.0) -> None:
        """Queue a prepared request, whose tokens may be held back for so long."""
        with self.lock:
            generation.hold_s = hold_s
            if not self.busy:
                self._launched = 0
            first, *others = generation.requests
            if others:
                self.scheduler.submit_group(first, others)
            else:
                self.scheduler.submit(first)
            self._live.update((request, generation) for request in generation.requests)

    def cancel(self, generation: Generation) -> None:
        """End a request now; it gets nothing more."""
        self._end(generation, "abort")

    def fail(self, generation: Generation, error: str) -> None:
        """End a request with an error."""
        for request in generation.requests:
            if request.finish_reason is None:
                request.error = error
        self._end(generation, "error")

    def step(self) -> list[Generation]:
        """Launch the next step and take in what is to be looked at. Returns who has new tokens or ended."""
        with self.lock:
            changed: dict[Generation, None] = {}
            self._stepping = True
            try:
                while self._flight and self.scheduler.wants_commit:
                    self._take(changed)
                left = self._launch()
                while len(self._flight) > left:
                    self._take(changed)
            except BaseException:
                self._abandon()
                raise
            finally:
                self._stepping = False
                while self._leaving:
                    self._end(*self._leaving.pop())
            return list(changed)

    def drain(self) -> None:
        """Take in the late steps of requests that have all ended, so that nothing is in flight."""
        with self.lock:
            while self._flight and not self.scheduler.busy and not self._stepping:
                self.step()

    def metrics(self) -> dict[str, Any]:
        """The scheduler's counters, and how long the device worked and, with work at hand, stood still."""
        total = self._busy_s + self._idle_s
        own = {"busy_s": self._busy_s, "idle_s": self._idle_s, "idle_share": self._idle_s / total if total else 0.0}
        return asdict(self.scheduler.metrics()) | own

    def _launch(self) -> int:
        """Launch the next step, if there is one; returns how many may stay unread."""
        self._at_work = None
        hold_s = min((one.hold_s for one in self._live.values()), default=0.0) if self._executor.can_repeat else 0.0
        step = self.scheduler.plan_step(hold_s)
        if step is None:
            if not self._flight and self.scheduler.busy:
                raise RuntimeError("the scheduler has requests, no step in flight and no next step")
            return max(len(self._flight) - 1, 0)
        self._at_work = step
        pending = self._executor.launch(step)
        self._flight.append(_Launched(step, pending, self._launched > 0))
        self._launched += 1
        late = self._launched - self._skip_step
        if late <= 0 or late % self._check_step:
            return MOST_IN_FLIGHT
        return 0 if pending.ready else 1  # a CPU has computed the step by now: nothing is won by not reading it

    def _take(self, changed: dict[Generation, None]) -> None:
        """Wait for the oldest step in flight, commit it and show its tokens. Then the next: what ends shows at once."""
        launched = self._flight[0]
        self._at_work = launched.step
        output = launched.pending.wait()
        self._flight.popleft()
        self._busy_s += output.busy_s
        self._idle_s += output.idle_s if launched.follows else 0.0
        for request in self.scheduler.commit(output):
            generation = self._live[request]
            found = generation.show(request)
            if found is not None:
                self.scheduler.finish(request, "stop", found)
            if request.finish_reason is not None:
                del self._live[request]
            changed[generation] = None

    def _abandon(self) -> None:
        """Forget what is in flight after a failure; remember who took part in the step that failed."""
        self._live = {request: one for request, one in self._live.items() if request.finish_reason is None}
        self.suspects = None
        if self._at_work is not None:
            slots = frozenset(self._at_work.slots.tolist())
            self.suspects = list(dict.fromkeys(one for request, one in self._live.items() if request.slot in slots))
        self._flight.clear()
        self.scheduler.abandon()

    def _end(self, generation: Generation, reason: str) -> None:
        with self.lock:
            if self._stepping:  # a stream may be collected, and so leave, at any moment
                self._leaving.append((generation, reason))
                return
            for request in generation.requests:
                if self._live.pop(request, None) is not None:
                    self.scheduler.finish(request, reason)
                    generation.show(request)

    def _spell(self, token: int) -> str:
        return self._tokenizer.decode([token], False)
