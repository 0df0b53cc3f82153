"""A device that is simulated and exact, to test whatever drives one.

Its cache holds the tokens themselves, page by page, and what it makes of a position is a hash of all that the
row's pages hold up to there: a page too few, a copy too late or another request's token changes the answer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from allotrope.runtime.loop import Loop
from allotrope.runtime.opening import Opened
from allotrope.runtime.prompts import Reader
from allotrope.runtime.request import Limits
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import LAST_DRAWN, Candidates, Scored, StepInput, StepOutput
from allotrope.tokenizers import Tokenizer, load

VOCAB, EOS, MAX_LEN, SLOTS = 300, 2, 64, 4


class Broken(RuntimeError):
    """What a simulated device raises."""


@dataclass
class Waiting:
    """A step whose output is withheld until somebody waits for it."""

    device: Device
    number: int
    output: StepOutput
    waited: bool = False

    @property
    def ready(self) -> bool:
        return self.waited or self.device.ready(self.number)

    def wait(self) -> StepOutput:
        self.device.events.append(("wait", self.number))
        self.waited = True
        if self.device.fails("wait", self.number):
            raise Broken("while waiting")
        return self.output


@dataclass
class Device:
    """The executor. `ready` says whether a step is over before anybody waits for it, `fails` which one breaks.

    Of a step that repeats it computes as many as `patience` leaves time for; in a `spoilt` one the first row is NaN.
    """

    pages: int = 64
    page_size: int = 4
    ready: Callable[[int], bool] = lambda number: False
    fails: Callable[[str, int], bool] = lambda when, number: False
    can_repeat: bool = False
    patience: Callable[[int], int] = lambda number: 1000
    spoilt: Callable[[int], bool] = lambda position: False
    events: list[tuple[str, int]] = field(default_factory=list)
    steps: list[StepInput] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.cache = np.full((self.pages, self.page_size), -7, np.int32)
        self.drawn = np.full(64, -7, np.int32)

    def launch(self, step: StepInput) -> Waiting:
        number = len(self.steps)
        self.steps.append(step)
        self.events.append(("launch", number))
        if self.fails("launch", number):
            raise Broken("while launching")
        return Waiting(self, number, self._compute(step) if step.repeats == 1 else self._repeat(step, number))

    def close(self) -> None:
        self.closed = True

    def _repeat(self, step: StepInput, number: int) -> StepOutput:
        assert self.can_repeat and step.hold_s > 0 and step.sample.all() and (np.diff(step.starts) == 1).all()
        outputs: list[StepOutput] = []
        for again in range(min(step.repeats, self.patience(number))):
            rest = {"tokens": np.full(step.rows, LAST_DRAWN, np.int32)} if again else {}
            outputs.append(self._compute(replace(step, first=step.first + again, **rest)))
            drawn = outputs[-1].tokens
            if not outputs[-1].finite.all() or any(drawn[row] == token for row, token in step.ends.tolist()):
                break
        tokens, logprobs, finite = (
            np.stack([getattr(output, name) for output in outputs]) for name in ("tokens", "logprobs", "finite")
        )
        return replace(outputs[-1], tokens=tokens, logprobs=logprobs, finite=finite)

    def _compute(self, step: StepInput) -> StepOutput:
        for source, target in step.page_copies.tolist():
            self.cache[target] = self.cache[source]
        tokens = np.full(step.rows, -1, np.int32)
        logprobs = np.full(step.rows, np.nan, np.float32)
        likely: list[Candidates] = []
        scored: list[tuple[Scored, ...]] = []
        for row in range(step.rows):
            start, end = step.starts[row], step.starts[row + 1]
            ids = np.where(step.tokens[start:end] == LAST_DRAWN, self.drawn[step.slots[row]], step.tokens[start:end])
            positions = step.first[row] + np.arange(end - start)
            pages = step.pages[row][positions // self.page_size]
            assert (pages >= 0).all() and (ids >= 0).all()
            self.cache[pages, positions % self.page_size] = ids
            seen = self.cache[step.pages[row]].reshape(-1)
            truth = self._values(seen[: positions[-1] + 1])
            likely.append(_likeliest(truth, int(step.candidates[row])))
            if step.sample[row]:
                token = self._draw(step, row, truth, int(positions[-1]))
                self.drawn[step.slots[row]] = tokens[row] = token
                logprobs[row] = truth[token]
            scored.append(tuple(self._scores(step, row, seen, positions)))
        finite = np.ones(step.rows, np.bool_)
        finite[0] = not self.spoilt(int(step.first[0]))
        return StepOutput(tokens, logprobs, tuple(likely), finite, tuple(scored), busy_s=0.5, idle_s=0.25)

    @staticmethod
    def _values(seen: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Log-probabilities after these tokens."""
        assert (seen >= 0).all(), "a position was read that nobody wrote"
        logits = np.random.default_rng(zlib.crc32(seen.tobytes())).standard_normal(VOCAB) * 2
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    @staticmethod
    def _draw(step: StepInput, row: int, truth: npt.NDArray[np.float32], position: int) -> int:
        logits = truth.copy()
        if step.adjust is not None:
            mine = step.adjust.rows == row
            ids, divide = step.adjust.tokens[mine], step.adjust.divide[mine]
            logits[ids] = np.where(logits[ids] > 0, logits[ids] / divide, logits[ids] * divide) + step.adjust.add[mine]
        if step.temperature[row]:
            noise = np.random.default_rng([int(step.seeds[row]) % 2**64, position]).gumbel(size=VOCAB)
            logits = logits / step.temperature[row] + noise.astype(np.float32)
        return int(logits.argmax())

    def _scores(self, step: StepInput, row: int, seen: npt.NDArray[np.int32], positions: Any) -> list[Scored]:
        if not len(step.targets):
            return []
        found = []
        for target, position in zip(step.targets[step.starts[row] : step.starts[row + 1]], positions, strict=True):
            if target >= 0:
                truth = self._values(seen[: position + 1])
                found.append((float(truth[target]), _likeliest(truth, int(step.target_candidates[row]))))
        return found


def _likeliest(truth: npt.NDArray[np.float32], count: int) -> Candidates:
    order = np.argsort(-truth, kind="stable")[:count].tolist()
    return tuple((token, float(truth[token])) for token in order)


def byte_tokenizer(folder: Path) -> Tokenizer:
    """Token n is byte n - 3."""
    (folder / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    return load(folder, VOCAB)


def loop_over(device: Device, tokenizer: Tokenizer, *, skip: int = 0, check: int = 1, **options: Any) -> Loop:
    """A loop that drives the device."""
    given = {"max_num_seqs": SLOTS, "max_batched_tokens": 16} | options
    scheduler = Scheduler(
        device.pages, device.page_size, given.pop("max_num_seqs"), given.pop("max_batched_tokens"), MAX_LEN, **given
    )
    return Loop(device, scheduler, tokenizer, Limits(VOCAB, MAX_LEN, (EOS,)), skip_step=skip, check_step=check)


def opened(device: Device, tokenizer: Tokenizer, **options: Any) -> Opened:
    """The same as an engine that was opened: nothing but its files is missing."""
    loop = loop_over(device, tokenizer, **options)
    reader = Reader(tokenizer, tokenizer.bos_id)
    nowhere: Any = None
    return Opened(nowhere, tokenizer, device, loop.limits, loop.scheduler.policy, loop, reader)
