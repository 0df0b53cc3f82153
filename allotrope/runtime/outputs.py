"""What a caller gets back, in the shapes that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model's own distribution (temperature 1, no filter)."""

    logprob: float
    rank: int | None  # 1 is the likeliest; None: not among the candidates that were asked for
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. `token_ids` holds the stop token that ended it, `text` neither that nor the stop string."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    logprobs: tuple[dict[int, Logprob], ...] | None  # per token: the drawn one and the likeliest
    finish_reason: str | None  # stop length error abort; None: not finished
    stop_reason: str | int | None  # which stop string or token
    seed: int  # as given or, without one, as drawn: with it the answer can be had again


@dataclass(frozen=True)
class RequestOutput:
    """One prompt's answers."""

    request_id: str
    prompt: str | None  # None where token ids were given
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    error: str | None = None  # why finish_reason is "error"


@dataclass(frozen=True)
class Delta:
    """What one step added to one request."""

    request_id: str
    index: int  # of the prompt among those that were given together
    text: str  # may be empty: half a character, or text that may still become a stop string
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    error: str | None = None
