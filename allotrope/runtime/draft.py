"""A step in the making: which rows it has so far. Once launched, it remembers whose results come back."""

from __future__ import annotations

from dataclasses import dataclass, field

from allotrope.runtime.request import Request
from allotrope.runtime.step import LAST_DRAWN


@dataclass(eq=False)
class Draft:
    """Rows of equal index in lists of equal length. `draws`: the row ends with a draw, or with a beam's candidates."""

    budget: int  # how many more tokens the step may have
    requests: list[Request] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    draws: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    adjusted: list[int] = field(default_factory=list)  # rows whose logits are changed before they draw
    prompts: set[Request] = field(default_factory=set)  # of whose prompts some is computed in this step
    scored: list[int] = field(default_factory=list)  # rows of prompts whose log-probabilities were asked for
    waits: bool = False  # somebody's next step needs what this one draws
    repeats: int = 1  # as in a step's input
    hold_s: float = 0.0

    def add(self, request: Request, count: int) -> None:
        """The request's next `count` tokens, of which only the last may be unknown."""
        tokens = request.tokens
        first, known = request.planned, len(tokens)
        end = first + count
        self.requests.append(request)
        self.slots.append(request.slot)
        self.first.append(first)
        self.counts.append(count)
        if count == 1:
            self.tokens.append(tokens[first] if first < known else LAST_DRAWN)
        else:
            self.tokens += tokens[first:end]
            if end > known:
                self.tokens.append(LAST_DRAWN)
        request.planned = end
        draws = end == known + request.pending
        self.draws.append(draws)
        if draws:
            request.pending += 1
            if request.needs_tokens:
                self.waits = True
            if request.adjuster is not None:
                self.adjusted.append(len(self.requests) - 1)
        if first < request.prompt_len:
            self.prompts.add(request)
            if first < request.prompt_len - 1 and request.params.prompt_logprobs is not None:
                self.scored.append(len(self.requests) - 1)
        self.budget -= count

    def add_beams(self, request: Request, slots: list[int], tokens: list[int]) -> None:
        """One token for each of a request's beams."""
        width = len(slots)
        self.requests += [request] * width
        self.slots += slots
        self.first += [request.planned] * width
        self.counts += [1] * width
        self.draws += [True] * width
        self.tokens += tokens
        request.planned += 1
        self.waits = True
        self.budget -= width
