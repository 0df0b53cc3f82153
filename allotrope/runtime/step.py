"""The records between scheduler and executor: one iteration's input and output.

NumPy arrays at the border, so that a step can be handed to another process or to C++ as it is. R rows
(requests that take part), T tokens in all; row r's tokens are `tokens[starts[r]:starts[r + 1]]` and stand
at positions `first[r]`, `first[r] + 1`, …
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

WANT_NONE, WANT_LAST, WANT_ALL = 0, 1, 2
LAST_DRAWN = -1  # in `tokens`: the token drawn last for the row's slot, which only the device knows yet
NO_INTS = np.zeros(0, np.int32)
NO_PAIRS = np.zeros((0, 2), np.int32)

Candidates = tuple[tuple[int, float], ...]
"""The likeliest tokens with their log-probabilities, best first."""

Scored = tuple[float, Candidates]
"""A given token's log-probability, and the likeliest (token, log-probability) in its place."""


@dataclass(frozen=True)
class Adjustments:
    """Changes of single logits before a token is drawn: x becomes (x / divide if x > 0 else x · divide) + add.

    At most one entry for each row and token. `divide` is the repetition penalty; `add` gathers what is added:
    the bias less the presence and frequency penalties; −∞ forbids the token. Log-probabilities that are
    reported stay those of the raw logits.
    """

    rows: Ints  # [A] rows of the step that draw a token
    tokens: Ints  # [A]
    divide: Floats  # [A] 1 changes nothing
    add: Floats  # [A]


@dataclass(frozen=True)
class StepInput:
    """What one step computes. The scheduler fills every field; nobody changes one afterwards."""

    slots: Ints  # [R] stable while a request runs
    starts: Ints  # [R + 1]
    first: Ints  # [R] position of the row's first token
    tokens: Ints  # [T] ids, or LAST_DRAWN
    pages: Ints  # [R, P] the row's pages in order; -1 where it has none
    want: npt.NDArray[np.uint8]  # [R] whose logits: WANT_NONE, WANT_LAST, WANT_ALL
    sample: npt.NDArray[np.bool_]  # [R] draw a token from the row's last logits (needs WANT_LAST or WANT_ALL)
    prompt_lens: Ints  # [R] prompt length at admission: fixes the rotary base of dynamic scalings
    temperature: Floats  # [R] 0 is greedy
    top_k: Ints  # [R] 0 is off
    top_p: Floats  # [R] 1 is off
    min_p: Floats  # [R] 0 is off
    seeds: Longs  # [R] with the position, the whole state of a request's randomness
    candidates: Ints  # [R] how many of the likeliest tokens to report of the row's last logits, drawn from or not
    page_copies: Ints  # [C, 2] pages to copy (from, to) before anything else; no page is both
    adjust: Adjustments | None = None  # None: nobody's logits are changed
    targets: Ints = field(
        default_factory=lambda: NO_INTS
    )  # [T] the token to score after each position, or -1; [0]: none
    target_candidates: Ints = field(default_factory=lambda: NO_INTS)  # [R] likeliest tokens to report beside each; [0]
    repeats: int = 1  # steps in one: each further one feeds every row on the token just drawn (who `can_repeat`)
    hold_s: float = 0.0  # no further one begins once so much time has passed,
    ends: Ints = field(default_factory=lambda: NO_PAIRS)  # [E, 2] or once a row has drawn a token: (row, token)

    @property
    def rows(self) -> int:
        """R."""
        return len(self.slots)


@dataclass(frozen=True)
class StepOutput:
    """What one step gave, row by row in the input's order.

    Of a step that repeats, what was drawn has an axis more, the first: as many as were computed.
    """

    tokens: Ints  # [R] the token drawn, or -1
    logprobs: Floats  # [R] its log-probability under the unfiltered distribution at temperature 1; NaN if none
    candidates: tuple[tuple[tuple[int, float], ...], ...]  # [R] the likeliest (token, log-probability), best first
    finite: npt.NDArray[np.bool_]  # [R] False: the row's logits held NaN or infinity, and its token means nothing
    scored: tuple[tuple[Scored, ...], ...] = ()  # [R] for each of the row's targets in order; (): nobody had any
    logits: Any = None  # on the executor's device, [rows wanted, vocab]; valid until the next step
    busy_s: float = 0.0  # how long the device worked on the step, in seconds
    idle_s: float = 0.0  # and how long it stood still before it, since the end of the step before; 0 for the first
    timed: Timed | None = None  # how long its calls took; None: not timed, or repeated whole


class Timed(Protocol):
    """What an executor's clock said of one step. Reading it costs something: that is for when the run is over."""

    def seconds(self) -> tuple[Seconds, float]:
        """Per call of the plan, 0 for one that had no rows; and how long the step took before the first."""
        ...


class Pending(Protocol):
    """A step that has been launched. One whose engine failed meanwhile may be dropped without waiting for it."""

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once; asking does not wait."""
        ...

    def wait(self) -> StepOutput:
        """Its output, once the device has it. Steps end in the order in which they were launched."""
        ...


class Executor(Protocol):
    """Whatever computes steps, in the order in which they are launched."""

    @property
    def can_repeat(self) -> bool:
        """Whether it computes several steps in one, where that is asked for."""
        ...

    def launch(self, step: StepInput) -> Pending:
        """Start a step without waiting for the device."""
        ...
