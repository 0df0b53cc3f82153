"""One prompt's answers as its caller sees them: text, log-probabilities, and what is new since it was last told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from allotrope.runtime.outputs import CompletionOutput, Delta, Logprob, Logprobs, RequestOutput
from allotrope.runtime.request import Request
from allotrope.runtime.step import Candidates
from allotrope.runtime.stops import TextStream

Spell = Callable[[int], str]  # a token's text


def logprob_row(token: int, logprob: float, likely: Candidates, spell: Spell) -> dict[int, Logprob]:
    """A token's log-probability, and beside it those of the likeliest."""
    ranks = {other: rank for rank, (other, _) in enumerate(likely, start=1)}
    values = {token: logprob} | {other: value for other, value in likely if other != token}
    return {other: Logprob(value, ranks.get(other), spell(other)) for other, value in values.items()}


@dataclass(eq=False)
class Answer:
    """One request and its text, which only grows, by what is safe to show; `shown` counts the tokens it covers."""

    request: Request
    stream: TextStream
    score: float | None = None  # of a beam
    pieces: list[str] = field(default_factory=list)  # of the text, none empty: a long one is not copied for each token
    shown: int = 0
    told: tuple[int, int, bool] = (0, 0, False)  # pieces, tokens, the end

    @property
    def text(self) -> str:
        """What may be shown."""
        return "".join(self.pieces)

    def show(self) -> None:
        """Turn new tokens into text, as far as no stop string has completed."""
        request, stream, added = self.request, self.stream, ""
        tokens, first = request.tokens, request.prompt_len
        while first + self.shown < len(tokens) and stream.found is None:
            token = tokens[first + self.shown]
            self.shown += 1
            if token not in request.stop_ids:
                added += stream.push(token)
        if request.finish_reason is not None and stream.found is None:
            added += stream.close()
        if added:
            self.pieces.append(added)

    def tokens(self, start: int = 0) -> tuple[int, ...]:
        """The output from its token `start` on."""
        return tuple(self.request.tokens[self.request.prompt_len + start :])

    def logprobs(self, spell: Spell, start: int = 0) -> Logprobs | None:
        """For each of `tokens`: the drawn one and the likeliest; None if nobody asked."""
        request = self.request
        if request.params.logprobs is None:
            return None
        rows = zip(self.tokens(start), request.logprobs[start:], request.candidates[start:], strict=True)
        return tuple(logprob_row(token, logprob, likely, spell) for token, logprob, likely in rows)

    def completion(self, index: int, spell: Spell) -> CompletionOutput:
        """The answer as it stands."""
        request = self.request
        return CompletionOutput(
            index=index,
            text=self.text,
            token_ids=self.tokens(),
            cumulative_logprob=sum(request.logprobs),
            logprobs=self.logprobs(spell),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            seed=request.seed,
            score=self.score,
        )


class Generation:
    """One prompt on its way: `requests` are its answers', or the one request that stands for all beams.

    Beams have no text before the search is over: until then what they say may still change.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        prompt: str | None,
        index: int,
        stream: Callable[[], TextStream],
        spell: Spell,
    ) -> None:
        self.requests = tuple(requests)
        self.prompt, self.index = prompt, index
        self.changed: dict[Generation, None] | None = None  # where it is put down whenever it has news
        self.hold_s = 0.0  # how long its tokens may be held back, so that the host is asked less often
        self._stream, self._spell = stream, spell
        beams = self.request.group is not None
        self._answers = [] if beams else [Answer(request, stream()) for request in self.requests]

    @property
    def request(self) -> Request:
        """The first answer's request, after which the whole is called."""
        return self.requests[0]

    @property
    def id(self) -> str:
        """What callers know it by."""
        return str(self.request.id)

    @property
    def ended(self) -> bool:
        """Whether every answer has."""
        return all(request.finish_reason is not None for request in self.requests)

    def show(self, request: Request) -> str | None:
        """Turn a request's new tokens into text; the stop string that ends it, if one has completed."""
        if self.changed is not None:
            self.changed[self] = None
        if request.group is not None:
            if request.finish_reason is not None:
                self._end_beams(request)
            return None
        answer = self._answers[request.index]
        answer.show()
        return answer.stream.found

    def news(self) -> Iterator[Delta]:
        """What each answer has gained since it was last told."""
        for i, answer in enumerate(self._answers):
            request = answer.request
            (pieces, tokens, _), before = answer.told, answer.told
            now = (len(answer.pieces), len(request.tokens) - request.prompt_len, request.finish_reason is not None)
            if now == before:
                continue
            answer.told = now
            yield Delta(
                request_id=self.id,
                index=self.index,
                text="".join(answer.pieces[pieces:]),
                token_ids=answer.tokens(tokens),
                finish_reason=request.finish_reason,
                error=request.error,
                output=i,
                stop_reason=request.stop_reason,
                logprobs=answer.logprobs(self._spell, tokens),
            )

    def output(self) -> RequestOutput:
        """The prompt and its answers as they stand, finished or not."""
        request = self.request
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=tuple(request.tokens[: request.prompt_len]),
            outputs=tuple(answer.completion(i, self._spell) for i, answer in enumerate(self._answers)),
            finished=self.ended,
            error=next((request.error for request in self.requests if request.error is not None), None),
            prompt_logprobs=self._prompt_logprobs(),
            num_cached_tokens=request.cached_tokens,
        )

    def _end_beams(self, request: Request) -> None:
        """The search is over: its best texts are the answers. One that failed has none, only how it ended."""
        found = [] if request.group is None or not request.group.done else request.group.best(request.params.n)
        for text in found:
            own = replace(
                request,
                tokens=[*request.tokens[: request.prompt_len], *text.tokens],
                logprobs=list(text.logprobs),
                candidates=[()] * len(text.tokens),
                finish_reason=text.finish_reason,
                stop_reason=text.tokens[-1] if text.finish_reason == "stop" else None,
            )
            self._answers.append(Answer(own, self._stream(), text.score))
        self._answers = self._answers or [Answer(request, self._stream())]
        for answer in self._answers:
            answer.show()

    def _prompt_logprobs(self) -> tuple[dict[int, Logprob] | None, ...] | None:
        request = self.request
        if request.params.prompt_logprobs is None:
            return None
        scored = zip(request.tokens[1 : request.prompt_len], request.prompt_scores, strict=False)
        return (None, *(logprob_row(token, value, likely, self._spell) for token, (value, likely) in scored))
