"""What a step leaves on the device, and its way home."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from allotrope.runtime.call_clock import CallTimes
from allotrope.runtime.step import Candidates, Scored, StepInput, StepOutput
from allotrope.runtime.step_tensors import logit_starts, reported

if TYPE_CHECKING:
    import torch


class Clock:
    """Moments on a device: in its stream of work on a GPU, the host's own on a CPU."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._last: Any = None  # the last step's end

    def now(self) -> Any:
        """This moment."""
        if not self._cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def ended(self, began: Any) -> Moments:
        """A step that began then has been launched whole."""
        moments = Moments(self._last, began, self.now())
        self._last = moments.end
        return moments


@dataclass(frozen=True)
class Moments:
    """When a step began and ended, and the one before it ended (None: there was none)."""

    before: Any
    begin: Any
    end: Any

    @property
    def ready(self) -> bool:
        """Whether the end has come."""
        return isinstance(self.end, float) or bool(self.end.query())

    def wait(self) -> tuple[float, float]:
        """Wait for the end. How long the step took, and how long nothing was done before it, in seconds."""
        if isinstance(self.end, float):
            return self.end - self.begin, 0.0 if self.before is None else self.begin - self.before
        self.end.synchronize()
        idle = 0.0 if self.before is None else self.before.elapsed_time(self.begin) / 1000
        return self.begin.elapsed_time(self.end) / 1000, max(idle, 0.0)


class Results:
    """A step that has been launched. Its tensors are its own: the next step may be launched before `wait`."""

    def __init__(self, step: StepInput, logits: torch.Tensor, sampled: Mapping[str, Any], slots: Mapping[str, Any]):
        """`sampled`: the `sample` op's outputs. `slots`: the step's, for what is to be reported of the logits."""
        import torch

        self._step, self._logits = step, logits
        # One pass over the logits: a row's sum is finite only if all of it is.
        found = {"finite": logits.sum(-1, dtype=torch.float32).isfinite()}
        if step.sample.any():
            found |= {"tokens": sampled["tokens"].reshape(-1), "logprobs": sampled["logprobs"].reshape(-1)}
        if "s:score_rows" in slots:
            from allotrope.ops.sample.scores import score

            most = int(max(step.candidates.max(), step.target_candidates.max(initial=0)))
            scores = score(logits, slots["s:score_rows"], slots["s:score_given"], most)
            found |= {"given": scores.given, "likeliest": scores.likeliest, "values": scores.values}
        self._found = {name: _sent(tensor) for name, tensor in found.items()}
        self._moments: Moments | None = None
        self._calls: CallTimes | None = None

    def launched(self, moments: Moments, calls: CallTimes | None = None) -> Results:
        """Itself, with its times."""
        self._moments, self._calls = moments, calls
        return self

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._moments is None or self._moments.ready

    def wait(self) -> StepOutput:
        """What the step gave. Waits for the device, which nothing before did."""
        step = self._step
        busy_s, idle_s = (0.0, 0.0) if self._moments is None else self._moments.wait()
        found = {name: tensor.numpy() for name, tensor in self._found.items()}
        finite = np.ones(step.rows, np.bool_)
        if not found["finite"].all():
            starts = logit_starts(step)
            finite[:] = [found["finite"][start:end].all() for start, end in pairwise(starts)]
        tokens, logprobs = np.full(step.rows, -1, np.int32), np.full(step.rows, np.nan, np.float32)
        if "tokens" in found:
            tokens[step.sample], logprobs[step.sample] = found["tokens"], found["logprobs"]
            finite[step.sample] &= ~np.isnan(found["logprobs"])  # nothing was left to draw from
        candidates: tuple[Candidates, ...] = ((),) * step.rows
        scored: tuple[tuple[Scored, ...], ...] = ()
        if "given" in found:
            candidates, scored = reports(step, found, finite)
        return StepOutput(tokens, logprobs, candidates, finite, scored, self._logits, busy_s, idle_s, self._calls)


def _sent(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host, as soon as the device has come to it."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    import torch

    home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return home.copy_(tensor, non_blocking=True)


def reports(
    step: StepInput, found: Mapping[str, Any], finite: np.ndarray[Any, Any]
) -> tuple[tuple[Candidates, ...], tuple[tuple[Scored, ...], ...]]:
    """Each row's likeliest tokens, and its targets' scores."""
    likely, targets = reported(step)
    given = found["given"].tolist()

    def likeliest(at: int, count: int) -> Candidates:
        return tuple(zip(found["likeliest"][at, :count].tolist(), found["values"][at, :count].tolist(), strict=True))

    candidates: list[Candidates] = [()] * step.rows
    for at, row in enumerate(likely.tolist()):
        if finite[row]:
            candidates[row] = likeliest(at, int(step.candidates[row]))
    if not len(targets):
        return tuple(candidates), ()
    scored: list[list[Scored]] = [[] for _ in range(step.rows)]
    rows = np.searchsorted(step.starts, targets, side="right") - 1
    counts = step.target_candidates[rows].tolist() if len(step.target_candidates) else [0] * len(rows)
    for at, (row, count) in enumerate(zip(rows.tolist(), counts, strict=True), start=len(likely)):
        scored[row].append((given[at], likeliest(at, count)))
    return tuple(candidates), tuple(map(tuple, scored))
