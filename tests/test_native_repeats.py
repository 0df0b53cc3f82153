"""Several steps in one call into the core: the bits of as many calls, up to an end or as far as the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.step import LAST_DRAWN, NO_PAIRS, WANT_LAST, Adjustments, StepInput, StepOutput
from tests.engines import GPT, LLAMA, MemoryEngine, plan_of, random_weights
from tests.native_kit import native_engine, native_executor, natively, needs_core

pytestmark = needs_core
RECIPES = {"llama": LLAMA, "gpt": GPT}
STEPS, PAGES = 9, 4  # of four tokens; two prompts of five tokens, then so many steps
PROMPTS = ([5, 6, 7, 8, 9], [11, 10, 9, 8, 7])
PATIENT = {"hold_s": 60.0, "ends": NO_PAIRS}
ALONE = "a step that repeats must draw one token for each row, and do nothing else"


def step(tokens: Sequence[Sequence[int]], first: int) -> StepInput:
    """Rows in slots 0 and 1, the first greedy, the other drawn; each has its own pages."""
    rows, length = len(tokens), len(tokens[0])
    given = lambda *values: np.array(values)  # noqa: E731
    return StepInput(
        slots=np.arange(rows, dtype=np.int32), starts=np.arange(rows + 1, dtype=np.int32) * length,
        first=np.full(rows, first, np.int32), tokens=np.array(tokens, np.int32).reshape(-1),
        pages=np.arange(rows * PAGES, dtype=np.int32).reshape(rows, PAGES), want=np.full(rows, WANT_LAST, np.uint8),
        sample=np.ones(rows, np.bool_), prompt_lens=np.full(rows, 5, np.int32),
        temperature=given(0.0, 1.3).astype(np.float32), top_k=np.zeros(rows, np.int32),
        top_p=np.ones(rows, np.float32), min_p=np.zeros(rows, np.float32), seeds=given(3, 4).astype(np.int64),
        candidates=np.zeros(rows, np.int32), page_copies=NO_PAIRS,
    )  # fmt: skip


def opened(engine: Any, threads: int = 1) -> NativeExecutor:
    """With both prompts computed: each row has drawn its first token."""
    runner = native_executor(engine, threads=threads, poison=False)
    runner.run(step(PROMPTS, 0))
    return runner


def further(**how: Any) -> StepInput:
    return replace(step([[LAST_DRAWN]] * 2, 5), **({"repeats": STEPS} | PATIENT | how))


def singly(runner: NativeExecutor, steps: int = STEPS) -> list[StepOutput]:
    return [runner.run(step([[LAST_DRAWN]] * 2, 5 + i)) for i in range(steps)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_steps_as_calls_give_the_same_bits(name: str, threads: int) -> None:
    engine = native_engine(RECIPES[name])
    expected, output = singly(opened(engine)), opened(engine, threads).run(further())
    assert output.tokens.shape == output.logprobs.shape == output.finite.shape == (STEPS, 2)
    assert output.tokens.tolist() == [one.tokens.tolist() for one in expected]
    assert output.logprobs.tobytes() == np.stack([one.logprobs for one in expected]).tobytes()
    assert output.finite.all() and len(set(output.tokens[:, 1].tolist())) > 2
    np.testing.assert_array_equal(output.logits, expected[-1].logits)


def test_going_on_from_a_step_that_repeated() -> None:
    engine = native_engine(LLAMA)
    expected, runner = singly(opened(engine)), opened(engine)
    runner.run(further(repeats=4))
    after = [runner.run(step([[LAST_DRAWN]] * 2, 9 + i)).tokens.tolist() for i in range(STEPS - 4)]
    assert after == [one.tokens.tolist() for one in expected[4:]]


def test_an_end_is_the_last_token() -> None:
    engine = native_engine(LLAMA)
    drawn = [one.tokens.tolist() for one in singly(opened(engine))]
    ending = drawn[5][1]
    at = 1 + next(i for i, tokens in enumerate(drawn) if tokens[1] == ending)
    ends = np.array([[1, 999], [1, ending]], np.int32)
    assert opened(engine).run(further(ends=ends)).tokens.tolist() == drawn[:at]
    # The same token ends only the row that it was given for.
    other = np.array([[0, ending]], np.int32)
    least = next((1 + i for i, tokens in enumerate(drawn) if tokens[0] == ending), STEPS)
    assert opened(engine).run(further(ends=other)).tokens.tolist() == drawn[:least]


def test_no_step_begins_when_the_time_has_passed() -> None:
    assert len(opened(native_engine(LLAMA)).run(further(hold_s=1e-9)).tokens) == 1


def test_a_step_without_meaning_is_the_last() -> None:
    """Whose embedding is NaN makes the next step's logits so; the head is a weight of its own."""
    weights = random_weights(LLAMA)
    drawn = [one.tokens.tolist() for one in singly(opened(native_engine(LLAMA)))]
    token = drawn[3][1]
    place = next(i for i, tokens in enumerate(drawn) if token in tokens)
    embedding = next(name for name in weights if "embed" in name)
    weights[embedding] = weights[embedding].clone()
    weights[embedding][token] = float("nan")
    output = opened(MemoryEngine(natively(plan_of(LLAMA)), weights)).run(further())
    assert len(output.tokens) == place + 2 and output.finite[:-1].all() and not output.finite[-1].all()
    assert output.tokens[:-1].tolist() == drawn[: place + 1]


def test_few_rows_of_the_room_that_there_is_are_enough() -> None:
    """Whoever grows the buffers does so before the first step, and nothing is computed twice."""
    engine = native_engine(LLAMA)
    runner = native_executor(engine, max_tokens=1, max_requests=1, poison=False)
    runner.run(step(PROMPTS, 0))
    assert runner.run(further()).tokens.tolist() == [one.tokens.tolist() for one in singly(opened(engine))]


@pytest.mark.parametrize(
    ("says", "changed"),
    [
        ("repeated from once to 1024 times", {"repeats": 0}),
        ("repeated from once to 1024 times", {"repeats": -3}),
        ("repeated from once to 1024 times", {"repeats": 2**62}),
        ("repeats must be a whole number", {"repeats": 2.5}),
        ("ends must be pairs", {"ends": np.zeros(4, np.int32)}),
        ("ends must be pairs", {"ends": np.zeros((2, 3), np.int32)}),
        ("held for a minute", {"hold_s": float("nan")}),
        ("held for a minute", {"hold_s": float("inf")}),
        ("held for a minute", {"hold_s": -1.0}),
        ("hold_s must be a number", {"hold_s": "long"}),
        (ALONE, {"candidates": np.array([0, 2], np.int32)}),
        (ALONE, {"sample": np.array([True, False])}),
        (ALONE, {"page_copies": np.array([[0, 9]], np.int32)}),
        (ALONE, {"targets": np.array([3, -1], np.int32)}),
        (ALONE, {"ends": np.array([[2, 5]], np.int32)}),
        (ALONE, {"ends": np.array([[-1, 5]], np.int32)}),
        (
            ALONE,
            {
                "adjust": Adjustments(
                    np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.float32), np.ones(1, np.float32)
                )
            },
        ),
        ("a step's tokens must have pages", {"repeats": 12}),
        ("a step's pages must be the pool's", {"pages": np.array([[0, 1, 2, 3], [4, 5, 6, -1]], np.int32)}),
        ("elements of another type", {"ends": np.zeros((1, 2), np.int64)}),
    ],
)
def test_what_cannot_be_repeated_is_refused(says: str, changed: dict[str, Any]) -> None:
    runner = opened(native_engine(LLAMA))
    wrong = further(**changed)
    count = int(min(max(wrong.repeats, 0), 99))
    outs = (np.zeros((count, 2), np.int32), np.zeros((count, 2), np.float32), np.zeros((count, 2), np.bool_))
    with pytest.raises((ValueError, TypeError), match=says):
        runner._core.launch(wrong, *outs)
    assert len(runner.run(further()).tokens) == STEPS


def test_a_step_that_is_timed_call_by_call_is_not_repeated() -> None:
    runner = native_executor(native_engine(LLAMA), poison=False, timed=True)
    assert not runner.can_repeat
    with pytest.raises(ValueError, match="a step that repeats cannot be timed call by call"):
        runner.run(further())


def test_a_prompt_is_not_repeated() -> None:
    runner = native_executor(native_engine(LLAMA), poison=False)
    with pytest.raises(ValueError, match=ALONE):
        runner.run(replace(step(PROMPTS, 0), repeats=2, hold_s=1.0))


def test_a_step_of_nobody_is_not_repeated() -> None:
    runner, none = opened(native_engine(LLAMA)), np.zeros(0, np.int32)
    fields = {
        name: value[:0] for name, value in vars(further()).items() if isinstance(value, np.ndarray) and value.ndim == 1
    }
    nobody = further(**fields | {"starts": np.zeros(1, np.int32), "pages": np.zeros((0, PAGES), np.int32)})
    with pytest.raises(ValueError, match=ALONE):
        runner._core.launch(nobody, none, none.astype(np.float32), none.astype(np.bool_))


def test_results_need_their_room() -> None:
    runner = opened(native_engine(LLAMA))
    outs = (np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32), np.zeros((3, 2), np.bool_))
    with pytest.raises(ValueError, match="outputs must have an element per row and repeat"):
        runner._core.launch(further(), *outs)
