"""What the core takes of a Python step: arrays of the right type and length, which it lets go of whatever comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.runtime.step import WANT_ALL, Adjustments, StepInput
from tests.engines import LLAMA
from tests.native_kit import native_engine, native_executor, needs_core
from tests.test_eager import one_step

pytestmark = needs_core

LENGTHS = "a step's arrays do not have as many elements as there are rows"
NONE = np.zeros(0, np.int32)
LONGEST = LLAMA.max_len  # shorter than what the pool holds
OUTPUTS = "outputs must have an element per row and repeat"


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    runner = native_executor(native_engine(LLAMA), max_requests=8)  # whose memory the core works in
    yield runner._core
    runner.close()


def given(**changed: Any) -> StepInput:
    step = one_step([5, 6, 7, 8, 9], WANT_ALL)
    targets, none = np.array([6, 7, 8, 9, -1], np.int32), np.zeros(1, np.int32)
    adjust = Adjustments(none, none + 3, np.ones(1, np.float32), np.ones(1, np.float32))
    return replace(step, **({"targets": targets, "target_candidates": none + 2, "adjust": adjust} | changed))


def outputs(**changed: Any) -> dict[str, Any]:
    dtypes = {"tokens": np.int32, "logprobs": np.float32, "finite": np.bool_}
    return {name: np.zeros(1, dtype) for name, dtype in dtypes.items()} | changed


def held(step: StepInput, outs: dict[str, Any]) -> list[int]:
    arrays = [*vars(step).values(), *getattr(step.adjust, "__dict__", {}).values(), *outs.values()]
    return [sys.getrefcount(array) for array in arrays if isinstance(array, np.ndarray) and array.size]


def test_a_step_of_everything_is_computed_and_let_go(core: Any) -> None:
    step, outs = given(), outputs()
    before = held(step, outs)
    assert core.launch(step, *outs.values()) == 5
    assert core.reported() == (5, 3)  # of the row and of the four positions with targets, three candidates at most
    assert outs["finite"].all() and outs["logprobs"][0] < 0
    assert held(step, outs) == before


@pytest.mark.parametrize(
    ("error", "says", "changed"),
    [
        *(
            (TypeError, f"{name} has elements of another type", {name: np.zeros(1, dtype)})
            for name, dtype in {"slots": np.int64, "seeds": np.int32, "top_k": np.float32, "min_p": np.int32}.items()
        ),
        *((ValueError, LENGTHS, {name: np.zeros(2, np.int32)}) for name in ("first", "prompt_lens", "top_k")),
        (ValueError, LENGTHS, {"seeds": np.zeros(0, np.int64)}),
        (ValueError, "starts must have an element more", {"starts": np.zeros(1, np.int32)}),
        (ValueError, "pages must have a line per row", {"pages": np.zeros((2, 2), np.int32)}),
        (ValueError, "pages must have a line per row", {"pages": np.zeros(2, np.int32)}),
        (ValueError, "targets must have an element per token", {"targets": np.zeros(4, np.int32)}),
        (ValueError, "target_candidates must have an element per row", {"target_candidates": np.zeros(3, np.int32)}),
        (AttributeError, "rows", {"adjust": 7}),
        (TypeError, "buffer|bytes-like", {"tokens": [5, 6, 7, 8, 9]}),
        (ValueError, "contiguous", {"tokens": np.zeros(10, np.int32)[::2]}),
    ],
)
def test_a_step_of_another_form_is_refused_and_let_go(
    core: Any, error: type[Exception], says: str, changed: dict[str, Any]
) -> None:
    step, outs = given(**changed), outputs()
    before = held(step, outs)
    with pytest.raises(error, match=says):
        core.launch(step, *outs.values())
    assert held(step, outs) == before


def test_a_program_without_a_page_or_a_call_is_refused(core: Any) -> None:
    make, isa = native.find().core.Program, native.find().isa
    for given_ in ((0, 4, 64), (1, 0, 64), (1, 4, 0), (1, 4, -5)):
        with pytest.raises(ValueError, match="a program needs a thread, and pages and a context of a token or more"):
            make(isa, *given_)
    with pytest.raises(ValueError, match="a choice belongs to a call"):
        make(isa, 1, 4, 64).choice(1, "linear", [], [], [], "", [])


def changed(name: str, at: int, value: int) -> dict[str, Any]:
    array = getattr(given(), name).copy()
    array.reshape(-1)[at] = value
    return {name: array}


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        ("rows must share out its tokens", changed("starts", 1, 4)),
        ("rows must share out its tokens", changed("starts", 0, 1)),
        ("must have a token each", {"tokens": np.zeros(0, np.int32), "starts": np.zeros(2, np.int32), "targets": NONE}),
        ("slots must not be negative", changed("slots", 0, -1)),
        ("tokens must have pages", changed("first", 0, 4)),
        ("tokens must have pages", changed("first", 0, -1)),
        (
            "must lie within the longest context",
            {"first": np.full(1, LONGEST - 4, np.int32), "pages": np.zeros((1, LONGEST), np.int32)},
        ),
        ("pages must be the pool's", changed("pages", 1, -1)),
        ("pages must be the pool's", changed("pages", 0, 64)),
        ("pages to be copied must be the pool's", {"page_copies": np.array([[0, 64]], np.int32)}),
        ("a target must be a token", changed("targets", 2, 1000)),
        ("a row that draws a token needs logits", {"want": np.zeros(1, np.uint8)}),
    ],
)
def test_a_step_that_reaches_beyond_what_there_is_is_refused(core: Any, says: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=says):
        core.launch(given(**wrong), *outputs().values())
    assert core.launch(given(), *outputs().values()) == 5


@pytest.mark.parametrize(("says", "where"), [("name a row of its step", "rows"), ("name a token", "tokens")])
@pytest.mark.parametrize("value", [-1, 1000])
def test_an_adjustment_beyond_the_step_is_refused(core: Any, says: str, where: str, value: int) -> None:
    adjust = given().adjust
    assert adjust is not None
    with pytest.raises(ValueError, match=says):
        core.launch(given(adjust=replace(adjust, **{where: np.full(1, value, np.int32)})), *outputs().values())


@pytest.mark.parametrize(
    ("error", "says", "changed"),
    [
        (TypeError, "tokens has elements of another type", {"tokens": np.zeros(1, np.int64)}),
        (TypeError, "logprobs has elements of another type", {"logprobs": np.zeros(1, np.int32)}),
        (TypeError, "finite has elements of another type", {"finite": np.zeros(1, np.float32)}),
        *((ValueError, OUTPUTS, {name: outputs()[name][:0]}) for name in ("tokens", "logprobs", "finite")),
    ],
)
def test_outputs_of_another_form_are_refused_and_let_go(
    core: Any, error: type[Exception], says: str, changed: dict[str, Any]
) -> None:
    step, outs = given(), outputs(**changed)
    before = [sys.getrefcount(array) for array in outs.values()]
    with pytest.raises(error, match=says):
        core.launch(step, *outs.values())
    assert [sys.getrefcount(array) for array in outs.values()] == before


def test_an_adjustment_is_whole(core: Any) -> None:
    adjust = given().adjust
    assert adjust is not None
    with pytest.raises(ValueError, match="a row, a token, a divisor and a summand"):
        core.launch(given(adjust=replace(adjust, add=np.ones(2, np.float32))), *outputs().values())
