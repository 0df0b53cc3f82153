"""Each call's own time: in plan order, nothing lost, nothing when nobody asks; on a GPU through events."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from allotrope.artifact.plan import Call
from allotrope.ops.contract import Array
from allotrope.runtime import call_clock
from allotrope.runtime.call_clock import CallClock, CallTimes
from allotrope.runtime.step import WANT_LAST, WANT_NONE, Seconds, StepOutput
from tests.engines import LLAMA
from tests.test_eager import engine_of, executor, one_step


def seconds(output: StepOutput) -> tuple[Seconds, float]:
    assert output.timed is not None
    return output.timed.seconds()


def test_calls_are_timed_in_plan_order_and_sum_to_the_step() -> None:
    runner = executor(engine_of(LLAMA), timed=True)
    runner.run(one_step([1, 2, 3], WANT_LAST))
    slow = next(i for i, call in enumerate(runner.plan.calls) if call.op == "rotary")
    assert runner.program is not None
    tactic = runner.program.calls[slow].choices[0].tactic

    class Slow:
        name = tactic.name

        def run(self, *given: Any) -> Any:
            time.sleep(0.03)
            return tactic.run(*given)

    choices = tuple(replace(choice, tactic=Slow()) for choice in runner.program.calls[slow].choices)  # type: ignore[arg-type]
    runner.program.calls[slow].choices = choices
    output = runner.run(one_step([1, 2, 3], WANT_LAST))
    call_s, prepare_s = seconds(output)
    assert call_s.shape == (len(runner.plan.calls),)
    assert call_s.argmax() == slow
    assert 0.03 <= call_s[slow] < 0.1
    assert (call_s > 0).all()
    assert 0 < prepare_s < output.busy_s
    assert prepare_s + call_s.sum() <= output.busy_s


def test_a_call_without_rows_took_no_time() -> None:
    runner = executor(engine_of(LLAMA), timed=True)
    step = replace(one_step([1, 2, 3], WANT_NONE), sample=np.array([False]), candidates=np.zeros(1, np.int32))
    call_s, _ = seconds(runner.run(step))
    idle = {call.op for call, took in zip(runner.plan.calls, call_s, strict=True) if not took}
    assert "sample" in idle
    assert "attention" not in idle


def test_nobody_asked_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallClock, "__init__", None)  # whoever makes one fails
    output = executor(engine_of(LLAMA)).run(one_step([1, 2], WANT_LAST))
    assert output.timed is None


def test_the_tokens_are_the_same_timed_or_not() -> None:
    engine, step = engine_of(LLAMA), one_step([5, 6, 7, 8], WANT_LAST)
    plain, timed = executor(engine).run(step), executor(engine, timed=True).run(step)
    assert plain.tokens.tolist() == timed.tokens.tolist()
    assert plain.logprobs.tobytes() == timed.logprobs.tobytes()


def test_what_a_tap_does_is_no_calls_time() -> None:
    runner = executor(engine_of(LLAMA), timed=True)
    seen: list[str] = []

    def tap(call: Call, outs: dict[str, Array]) -> None:
        seen.append(call.path)
        time.sleep(0.002)

    output = runner.run(one_step([1, 2], WANT_LAST), tap=tap)
    assert seen == [call.path for call in runner.plan.calls]
    assert output.busy_s > 0.002 * len(seen)
    assert 0 < np.median(seconds(output)[0]) < 0.002


class _Event:
    """Stands for a CUDA event: it knows its moment only once it has been waited for."""

    def __init__(self, moment_ms: float) -> None:
        self.moment_ms, self.come = moment_ms, False

    def synchronize(self) -> None:
        self.come = True

    def elapsed_time(self, other: _Event) -> float:
        assert other.come, "read before it had come"
        return other.moment_ms - self.moment_ms


def test_events_are_read_once_they_have_come() -> None:
    times = CallTimes(_Event(0.0), [(None, _Event(2.0)), (1, _Event(5.0)), (1, _Event(6.0))], 3)
    per_call, prepare = times.seconds()
    assert per_call.tolist() == pytest.approx([0.0, 0.004, 0.0])
    assert prepare == pytest.approx(0.002)
    assert call_clock.CallTimes(1.0, [(0, 1.5)], 1).seconds() == (np.array([0.5]), 0.0)
