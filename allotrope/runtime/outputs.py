"""What a caller gets back, in the shapes that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model's own distribution (temperature 1, no filter)."""

    logprob: float
    rank: int | None  # 1 is the likeliest; None: not among the candidates that were asked for
    decoded_token: str


Logprobs = tuple[dict[int, Logprob], ...]


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `token_ids` holds the stop token that ended it, `text` neither that nor the stop string."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    logprobs: Logprobs | None  # per token: the drawn one and the likeliest
    finish_reason: str | None  # stop length error abort; None: not finished
    stop_reason: str | int | None  # which stop string or token
    seed: int  # as given or, without one, as drawn: with it the answer can be had again
    score: float | None = None  # what beams are ranked by: cumulative_logprob / length^length_penalty


@dataclass(frozen=True)
class Usage:
    """What a request cost, in tokens. `cached_tokens` are those of the prompt that had been computed before."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and answers."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class RequestOutput:
    """One prompt's answers: `n` of them by index, or of beams the best first."""

    request_id: str
    prompt: str | None  # None where token ids were given
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    error: str | None = None  # why finish_reason is "error"
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None  # the first token has none: nothing before it
    num_cached_tokens: int = 0

    @property
    def usage(self) -> Usage:
        """The request's tokens, counted."""
        completion = sum(len(answer.token_ids) for answer in self.outputs)
        return Usage(len(self.prompt_token_ids), completion, self.num_cached_tokens)


@dataclass(frozen=True)
class Delta:
    """What one answer gained since it was last told of. Joined, an answer's deltas are the whole answer."""

    request_id: str
    index: int  # of the prompt among those that were given together
    text: str  # may be empty: half a character, or text that may still become a stop string
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    error: str | None = None
    output: int = 0  # which of the prompt's answers
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None  # of `token_ids`, if asked for
