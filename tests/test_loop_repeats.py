"""Steps that follow from each other, launched as one: nothing shows of it but that the host is asked less often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from allotrope.runtime.outputs import RequestOutput
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import MOST_REPEATS
from allotrope.tokenizers import Tokenizer
from tests.loop_kit import Device, byte_tokenizer, loop_over
from tests.test_loop import DRAWN, GREEDY, Asked, alone, comparable, finish, submitted

PATIENCE: dict[str, Callable[[int], int]] = {
    "patient": lambda number: 1000,
    "hurried": lambda number: 1,
    "uneven": lambda number: 1 + number * 7 % 5,
}
PLAIN = replace(DRAWN, ignore_eos=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> Asked:
    """Such as can be repeated, and such as cannot, alone and side by side."""
    text = alone(tokenizer, [([5, 6, 7], DRAWN)])[0].outputs[0].text
    return [
        ([5] * 3, GREEDY),
        ([6] * 17, replace(PLAIN, max_tokens=40, seed=3)),
        ([10] * 2, replace(PLAIN, temperature=2.0, seed=9, stop_token_ids=range(3, 60))),
        ([7, 8] * 5, replace(DRAWN, n=2, seed=4)),
        ([5, 6, 7], replace(DRAWN, stop=text[7:10])),
        ([9] * 5, replace(GREEDY, logprobs=2)),
        ([9] * 23, replace(GREEDY, repetition_penalty=1.7)),
        ([8] * 6, SamplingParams(max_tokens=9, temperature=0, beams=2, seed=1)),
        ([3], SamplingParams(max_tokens=1, temperature=0, seed=1)),
        ([4] * 11, replace(DRAWN, max_tokens=50, seed=6, prompt_logprobs=1)),
        ([12] * 9, replace(PLAIN, max_tokens=33, seed=8, logprobs=0)),
    ]


def held(device: Device, tokenizer: Tokenizer, asked: Asked, **options: int) -> list[RequestOutput]:
    loop = loop_over(device, tokenizer, **options)
    return finish(loop, submitted(loop, asked), hold_s=1.0)


@pytest.mark.parametrize("patience", PATIENCE.values(), ids=PATIENCE)
@pytest.mark.parametrize(("skip", "check"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("pages", [64, 20])
def test_repeating_changes_nothing(
    tokenizer: Tokenizer, asked: Asked, patience: Callable[[int], int], skip: int, check: int, pages: int
) -> None:
    """All at once, so that whoever is left over at the end repeats; then each by itself. With few pages, too."""
    options = {"skip": skip, "check": check}
    together = Device(pages=pages, repeats=True, ready=lambda number: True, patience=patience)
    expected = alone(tokenizer, asked)
    assert held(together, tokenizer, asked, **options) == expected
    by_itself = Device(pages=pages, repeats=True, ready=lambda number: True, patience=patience)
    loop = loop_over(by_itself, tokenizer, **options)
    assert [finish(loop, submitted(loop, [one]), hold_s=1.0)[0] for one in asked] == [
        replace(output, outputs=output.outputs) for output in expected
    ]
    assert any(step.repeats > 1 for step in by_itself.steps)


def test_one_launch_for_many_tokens(tokenizer: Tokenizer) -> None:
    """The prompt, then as many as the rest of the answer or the most that one launch may be."""
    device = Device(repeats=True, ready=lambda number: True)
    (output,) = held(device, tokenizer, [([5] * 3, replace(GREEDY, max_tokens=50))])
    assert len(output.outputs[0].token_ids) == 50
    assert [step.repeats for step in device.steps] == [1, MOST_REPEATS, 50 - 1 - MOST_REPEATS]


def test_nobody_repeats_unasked_or_where_the_executor_does_not(tokenizer: Tokenizer) -> None:
    for repeats, hold_s in ((True, 0.0), (False, 1.0)):
        device = Device(repeats=repeats, ready=lambda number: True)
        loop = loop_over(device, tokenizer)
        finish(loop, submitted(loop, [([5] * 3, GREEDY)]), hold_s=hold_s)
        assert len(device.steps) == GREEDY.max_tokens and all(step.repeats == 1 for step in device.steps)


@pytest.mark.parametrize(
    "changed",
    [
        {"stop": "x"},
        {"logprobs": 1},
        {"logit_bias": {5: 1.0}},
        {"min_tokens": 3},
        {"presence_penalty": 0.5},
        {"beams": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_the_host_has_a_part_in_is_not_repeated(tokenizer: Tokenizer, changed: dict[str, object]) -> None:
    device = Device(repeats=True, ready=lambda number: True)
    params = replace(GREEDY, **changed)  # type: ignore[arg-type]
    held(device, tokenizer, [([5] * 3, params)])
    assert all(step.repeats == 1 for step in device.steps)
    # Nor is anybody else's beside it.
    beside = Device(repeats=True, ready=lambda number: True)
    held(beside, tokenizer, [([5] * 3, replace(params, max_tokens=12)), ([6] * 3, GREEDY)])
    assert all(step.repeats == 1 for step in beside.steps)


def test_an_end_is_the_last_token_computed(tokenizer: Tokenizer) -> None:
    """Nothing is computed beyond the token that ends a request; whoever goes on, goes on from there."""
    drawn = alone(tokenizer, [([5, 6, 7], DRAWN)])[0].outputs[0].token_ids
    ending = replace(DRAWN, stop_token_ids=(drawn[6],))
    device = Device(repeats=True, ready=lambda number: True)
    first, other = held(device, tokenizer, [([5, 6, 7], ending), ([6] * 4, DRAWN)])
    assert first.outputs[0].token_ids == drawn[: drawn.index(drawn[6]) + 1] and first.outputs[0].stop_reason == drawn[6]
    assert other == alone(tokenizer, [([6] * 4, DRAWN)])[0]
    both = [step for step in device.steps if step.rows == 2]
    assert both[-1].repeats > 1 and [drawn[6]] == [token for row, token in both[-1].ends.tolist() if row == 0]
    alone_again = next(step for step in device.steps if step.rows == 1)
    assert int(alone_again.first[0]) == 4 + len(first.outputs[0].token_ids) - 1


def test_a_row_without_meaning_fails_and_keeps_what_came_before(tokenizer: Tokenizer) -> None:
    device = Device(repeats=True, ready=lambda number: True, spoilt=lambda position: position == 9)
    loop = loop_over(device, tokenizer)
    generations = submitted(loop, [([5] * 3, GREEDY), ([6] * 3, GREEDY)])
    while not all(generation.ended for generation in generations):
        loop.step(1.0)
    bad, good = (generation.output() for generation in generations)
    expected = alone(tokenizer, [([5] * 3, GREEDY), ([6] * 3, GREEDY)])
    assert bad.outputs[0].finish_reason == "error" and "NaN" in (bad.error or "")
    assert bad.outputs[0].token_ids == expected[0].outputs[0].token_ids[:7]  # of positions 2 to 8
    assert good.outputs[0].token_ids == expected[1].outputs[0].token_ids


def test_who_comes_or_leaves_between_launches(tokenizer: Tokenizer) -> None:
    device = Device(repeats=True, ready=lambda number: True, patience=lambda number: 3)
    loop = loop_over(device, tokenizer)
    (first,) = submitted(loop, [([5] * 3, GREEDY)])
    loop.step(1.0), loop.step(1.0)
    assert len(first.output().outputs[0].token_ids) == 4
    second, third = submitted(loop, [([6] * 4, DRAWN), ([7] * 5, PLAIN)])
    loop.step(1.0)
    assert device.steps[-1].repeats == 1  # somebody had been waiting
    loop.step(1.0)
    loop.cancel(third)
    finish(loop, [first, second], hold_s=1.0)
    expected = alone(tokenizer, [([5] * 3, GREEDY), ([6] * 4, DRAWN)])
    assert [comparable(one).outputs for one in (first, second)] == [one.outputs for one in expected]


def test_counts_are_those_of_single_steps(tokenizer: Tokenizer) -> None:
    counted = []
    for hold_s in (0.0, 1.0):
        loop = loop_over(Device(repeats=True, ready=lambda number: True), tokenizer)
        finish(loop, submitted(loop, [([5] * 3, GREEDY), ([6] * 17, PLAIN)]), hold_s=hold_s)
        metrics = loop.metrics()
        counted.append({name: value for name, value in metrics.items() if not name.endswith(("_s", "_share"))})
    assert counted[0] == counted[1] and counted[0]["output_tokens"] > 0
