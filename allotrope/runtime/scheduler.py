"""The scheduler: who takes part in the next step, and with how many tokens. Integers, no tensors.

    submit → waiting → (slot, pages for its tokens) running → finished (slot and pages back)
                 ▲                                     │
                 └─────────── preempted ◄──────────────┘   pages back, outputs kept, computed again

Order is that of arrival or, under the policy "priority", of priority and then arrival. A step packs one token
of each request that decodes and, as far as its budget goes, chunks of prompts; nothing is padded. Admission
is optimistic: pages are taken as tokens come, and when there are none the last in order gives way. So the
first can always finish; nobody waits for ever, unless under "priority" more urgent ones never cease to come.

Steps may be planned while others are in flight. The tokens that those draw are then unknown here; what is
known is how many there will be, and that is all that planning needs, except where a request says otherwise.

Where nobody waits but for a seat, and everybody who runs does nothing but draw its next token, the next steps follow
from each other. They may then be planned as one, which its executor repeats until a token ends somebody or too much
time has passed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from allotrope.errors import NumericalError, RequestError, UsageError
from allotrope.runtime.beam_rows import BeamRows
from allotrope.runtime.draft import Draft
from allotrope.runtime.holdings import Holdings
from allotrope.runtime.metrics import Metrics
from allotrope.runtime.request import Request
from allotrope.runtime.step import Candidates, StepInput, StepOutput

POLICIES = ("fcfs", "priority")
MOST_REPEATS = 32  # steps in one: by then what planning one costs is spread thin
_order = attrgetter("key")


@dataclass
class Scheduler:
    """Owns every request's progress. The loop calls `plan_step` and `commit`, in the same order."""

    pages: int
    page_size: int
    max_num_seqs: int  # the most rows that run at once
    max_batched_tokens: int  # the most tokens in a step
    max_len: int
    policy: str = "fcfs"
    prefix_cache: bool = True
    rotary_lengths: Sequence[int] = ()  # beyond these prompt lengths keys depend on the prompt's length
    waiting: list[Request] = field(default_factory=list, init=False)  # in order
    running: list[Request] = field(default_factory=list, init=False)  # in order

    def __post_init__(self) -> None:
        for name in ("pages", "page_size", "max_num_seqs", "max_batched_tokens", "max_len"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.policy not in POLICIES:
            raise UsageError(f"policy is {self.policy!r}; it must be one of {', '.join(POLICIES)}")
        self._holdings = Holdings(
            self.pages, self.page_size, self.max_num_seqs, self.max_len, self.prefix_cache, self.rotary_lengths
        )
        self._counts = Metrics()
        self._arrivals = 0
        self._flight: deque[Draft] = deque()
        self._short = False  # somebody could not be planned before a step in flight is committed
        self._refused: tuple[tuple[int, int], int] | None = None  # who could not be admitted last, with what headroom

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def in_flight(self) -> int:
        """How many steps were planned and not committed."""
        return len(self._flight)

    @property
    def wants_commit(self) -> bool:
        """Whether to commit a step before planning another: somebody needs its tokens, or pages that only then move."""
        return bool(self._flight) and (self._short or any(draft.waits for draft in self._flight))

    @property
    def pages_used(self) -> int:
        """KV pages that requests hold now."""
        return self._holdings.pool.used

    def metrics(self) -> Metrics:
        """The counters now."""
        pool = self._holdings.pool
        return replace(
            self._counts,
            waiting=len(self.waiting),
            running=len(self.running),
            in_flight=len(self._flight),
            pages_free=pool.free,
            pages_used=pool.used,
            pages_cached=pool.cached,
            prefix_query_tokens=self._holdings.query_tokens,
            prefix_hit_tokens=self._holdings.hit_tokens,
            finished=dict(self._counts.finished),
        )

    def check(self, request: Request) -> None:
        """Refuse a request that could never fit, however long it waited."""
        needed = self._holdings.most_pages(request)
        if needed > self.pages:
            raise RequestError(
                f"prompt and output need {needed} KV pages of {self.page_size} tokens; {self.pages} are available",
                remedy="lower max_tokens, shorten the prompt or raise kv_memory",
            )
        for name in ("max_num_seqs", "max_batched_tokens"):
            if request.width > getattr(self, name):
                raise RequestError(f"beams is {request.width}; {name} allows {getattr(self, name)}")

    def submit(self, request: Request) -> None:
        """Queue a request; one that could never fit is refused now."""
        self.submit_group(request, ())

    def submit_group(self, first: Request, others: Sequence[Request]) -> None:
        """Queue requests of one prompt. The first computes it; the others then share its pages."""
        for request in (first, *others):
            self.check(request)
        for request in (first, *others):
            self._arrivals += 1
            request.key = (request.priority if self.policy == "priority" else 0, self._arrivals)
            request.parent = None if request is first else first
            insort(self.waiting, request, key=_order)

    def cancel(self, request: Request) -> None:
        """End a request now; it gets no further token, not even from a step in flight."""
        self.finish(request, "abort")

    def finish(self, request: Request, reason: str, stop_reason: str | int | None = None) -> None:
        """End a request that has not ended, and free what it holds. Steps in flight add nothing to it."""
        finished = self._counts.finished
        if request.finish_reason is not None:
            if (request.finish_reason, reason) != ("length", "stop"):
                return
            finished["length"] -= 1  # its last token completed a stop string
        elif request.slot >= 0:
            self.running.remove(request)
            self._holdings.release(request, forget=reason == "error")
        else:
            place = bisect_left(self.waiting, request.key, key=_order)
            if self.waiting[place : place + 1] == [request]:
                del self.waiting[place]
        request.finish_reason, request.stop_reason, request.parent = reason, stop_reason, None
        finished[reason] = finished.get(reason, 0) + 1

    def plan_step(self, hold_s: float = 0.0) -> StepInput | None:
        """The next step's input; None if nothing can be computed now. Each plan must be committed, in order.

        It may stand for several steps, none of which is begun after `hold_s`.
        """
        draft, prompts, page = Draft(self.max_batched_tokens), [], self.page_size
        self._short = False
        for request in tuple(self.running):  # for many rows this is most of what planning costs: few calls
            planned = request.planned
            if request.beams is not None and request.beams.tails:
                self._plan_beams(draft, request, request.beams)
            elif len(request.tokens) + request.pending - planned > 1:
                prompts.append(request)
            elif draft.budget and request.slot >= 0 and planned < request.positions:
                known = not (request.pending and request.needs_tokens)
                if known and (planned < len(request.pages) * page or self._make_room(request)):
                    draft.add(request, 1)
        for request in prompts:
            if draft.budget and request.slot >= 0:
                draft.add(request, min(request.left, draft.budget))
        if not self._short:
            self._admit(draft)
        if not draft.requests:
            self._short = True  # all there is to do is in flight
            return None
        if hold_s > 0 and self._repeatable(draft):
            self._repeat(draft, hold_s)
        self._flight.append(draft)
        return self._holdings.table.gather(draft)

    def abandon(self) -> None:
        """Forget the steps in flight, which failed. Their requests stand where they stood; planning again is safe."""
        self._flight.clear()
        self._short = False
        for request in tuple(self.running):
            request.planned, request.pending = request.computed, 0
            if request.beams is None:
                self._holdings.trim(request, len(request.tokens))
            if not request.computed:  # it may share pages whose contents were in those steps
                self._requeue(request)

    def commit(self, output: StepOutput) -> list[Request]:
        """Take in the oldest planned step's results; returns who has a new token or ended.

        Who was ended meanwhile gets nothing: the token that a step in flight drew for it is discarded.
        """
        draft, page = self._flight.popleft(), self.page_size
        self._short = False
        if draft.repeats > 1:
            return self._commit_repeated(draft, output)
        self._counts.steps += 1
        self._counts.computed_tokens += len(draft.tokens)
        tokens, logprobs, finite = output.tokens.tolist(), output.logprobs.tolist(), output.finite.tolist()
        changed: list[Request] = []
        searches: dict[Request, list[Candidates]] = {}
        for row, (request, first, count, draws) in enumerate(
            zip(draft.requests, draft.first, draft.counts, draft.draws, strict=True)
        ):
            if request.finish_reason is not None:
                continue
            if not finite[row]:
                self._fail(request)
                changed.append(request)
                continue
            request.computed = first + count
            if request.computed // page > request.prefixed:
                self._holdings.remember(request)
            if output.scored and output.scored[row]:
                request.prompt_scores += output.scored[row]
            if request.group is not None:
                if draws:
                    searches.setdefault(request, []).append(output.candidates[row])
            elif draws:
                self._draw(request, tokens[row], logprobs[row], output.candidates[row])
                changed.append(request)
        for request, candidates in searches.items():
            if request.finish_reason is None and self._advance(request, candidates):
                changed.append(request)
        return changed

    def _commit_repeated(self, draft: Draft, output: StepOutput) -> list[Request]:
        """The same for a step that stands for several. Only its last token ends a request, or fails it.

        Whoever is in it has drawn before: nobody's prompt is counted here.
        """
        done = len(output.tokens)
        self._counts.steps += done
        self._counts.computed_tokens += done * len(draft.tokens)
        tokens, logprobs = output.tokens.T.tolist(), output.logprobs.T.tolist()
        finite = output.finite[-1].tolist()
        changed = [request for request in draft.requests if request.finish_reason is None]
        for row, (request, first) in enumerate(zip(draft.requests, draft.first, strict=True)):
            if request.finish_reason is not None:
                continue
            drawn = done if finite[row] else done - 1
            self._counts.output_tokens += drawn
            request.pending = 0
            request.tokens += tokens[row][:drawn]
            request.logprobs += logprobs[row][:drawn]
            request.candidates += [()] * drawn
            if not finite[row]:
                self._fail(request)
                continue
            request.planned = request.computed = first + done
            self._holdings.trim(request, request.computed)
            if request.computed // self.page_size > request.prefixed:
                self._holdings.remember(request)
            self._end(request, tokens[row][-1])
        return changed

    def _draw(self, request: Request, token: int, logprob: float, candidates: Candidates) -> None:
        """One more token of output, which may be the last."""
        if len(request.tokens) == request.prompt_len and not request.index:
            self._counts.prompt_tokens += request.prompt_len
        self._counts.output_tokens += 1
        request.pending -= 1
        request.tokens.append(token)
        request.logprobs.append(logprob)
        request.candidates.append(candidates)
        if request.adjuster is not None:
            request.adjuster.push(token)
            request.needs_tokens = request.adjuster.needs_tokens
        if token in request.stop_ids or len(request.tokens) > request.positions:
            self._end(request, token)

    def _end(self, request: Request, token: int) -> None:
        """End a request whose last token, this one, says so."""
        if token in request.stop_ids:
            self.finish(request, "stop", token)
        elif len(request.tokens) > request.positions:
            self.finish(request, "length")

    def _advance(self, request: Request, candidates: Sequence[Candidates]) -> bool:
        """One more token for each beam; returns whether the search is over."""
        group, beams = request.group, request.beams
        if group is None or beams is None:
            raise RuntimeError(f"request {request.id} has no beams")
        request.pending = 0
        chosen = group.advance(candidates)
        if chosen is not None:
            self._holdings.reorder(request, beams, chosen)
            return False
        best = group.best(1)[0]
        request.tokens += best.tokens
        request.logprobs += best.logprobs
        self._counts.prompt_tokens += request.prompt_len
        self._counts.output_tokens += len(best.tokens)
        self.finish(request, best.finish_reason, best.tokens[-1] if best.finish_reason == "stop" else None)
        return True

    def _fail(self, request: Request) -> None:
        """End a request whose logits mean nothing; what it computed is of no use to others."""
        request.error = str(NumericalError("the logits hold NaN or infinity", where=f"request {request.id}"))
        self.finish(request, "error")

    def _make_room(self, request: Request) -> bool:
        """A page for the request's next token, which may cost others theirs; whether it has one now."""
        while not self._holdings.grow(request):
            if not self._give_way(request):
                return False
        return True

    def _repeatable(self, draft: Draft) -> bool:
        """Whether nobody but the rows of this step would have a part in the next, and each feeds on its own token.

        Whoever waits for a seat gets none before somebody has ended, which ends the repeating, too; a seat that is
        given up meanwhile is taken when the launch is over.
        """
        if self._flight or draft.prompts or draft.copies or (self.waiting and self._holdings.free_slots):
            return False
        if not len(draft.requests) == len(self.running) == len(draft.tokens):
            return False  # somebody is left out, or computes again what it had before it gave way
        return all(draft.draws) and all(request.draws_only for request in draft.requests)

    def _repeat(self, draft: Draft, hold_s: float) -> None:
        """Let the step stand for as many as nobody's end, and no page, forbids."""
        more = min(MOST_REPEATS - 1, *(request.positions - request.planned for request in draft.requests))
        more = self._holdings.extend(draft.requests, more)
        if more:
            draft.repeats, draft.hold_s, draft.waits = 1 + more, hold_s, True

    def _plan_beams(self, draft: Draft, request: Request, beams: BeamRows) -> None:
        """The next token of each of its beams, in lockstep."""
        if request.planned > request.computed or draft.budget < request.width:
            return
        self._holdings.grow_beams(request, beams)
        draft.add_beams(request, beams.slots, beams.tokens)
        draft.copies += beams.copies

    def _give_way(self, request: Request) -> bool:
        """Take the pages of the last in order; returns whether `request`, which wants some, still runs.

        Nobody gives way while steps are in flight: reading them may free pages, and only what was read is kept.
        Beam searches never do; a request that finds only them waits for them to end.
        """
        movable = [other for other in self.running if other.group is None]
        if self._flight or movable == [request]:
            self._short = True
            return False
        last = movable[-1]
        last.preemptions += 1
        self._counts.preemptions += 1
        self._requeue(last)
        return last is not request

    def _requeue(self, request: Request) -> None:
        """Back to its old place in the queue. It keeps its output and is computed again from the beginning."""
        self.running.remove(request)
        self._holdings.release(request)
        insort(self.waiting, request, key=_order)

    def _admit(self, draft: Draft) -> None:
        """Start whoever waits, in order; only those are passed over whose prompt another is computing for them.

        Beside others, a page for each of them is left, so that an admission is not paid for by the next preemption.
        """
        place = 0
        while place < len(self.waiting) and draft.budget and self._holdings.free_slots:
            request, spare = self.waiting[place], len(self.running)
            parent = request.parent
            if parent is not None and parent.slot < 0:
                parent = request.parent = None  # it has ended or gave way
            if parent is not None:
                if parent.planned < parent.prompt_len or parent in draft.prompts:
                    place += 1
                    continue
                copies = self._holdings.fork(request, parent, spare)
                if copies is None:
                    break
                draft.copies += copies
            elif not self._admit_alone(request, spare):
                break
            request.parent = None
            del self.waiting[place]
            insort(self.running, request, key=_order)
            draft.add(request, min(request.left, draft.budget))

    def _admit_alone(self, request: Request, spare: int) -> bool:
        """Ask for slot and pages, but not again before there is more room than when they were refused."""
        headroom = self._holdings.room - spare
        refused = self._refused
        if spare and refused is not None and refused[0] == request.key and headroom <= refused[1]:
            return False
        if self._holdings.admit(request, spare):
            return True
        self._refused = (request.key, headroom)
        return False
