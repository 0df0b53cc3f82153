"""Steps that follow from each other, launched as one: nothing shows of it but that the host is asked less often."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from allotrope.runtime.outputs import RequestOutput
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import MOST_REPEATS
from allotrope.tokenizers import Tokenizer
from tests.loop_kit import Broken, Device, byte_tokenizer, loop_over
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
    return finish(loop, submitted(loop, asked, 1.0))


@pytest.mark.parametrize("patience", PATIENCE.values(), ids=PATIENCE)
@pytest.mark.parametrize(("skip", "check"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("pages", [64, 20])
def test_repeating_changes_nothing(
    tokenizer: Tokenizer, asked: Asked, patience: Callable[[int], int], skip: int, check: int, pages: int
) -> None:
    """All at once, so that whoever is left over at the end repeats; then each by itself. With few pages, too."""
    options = {"skip": skip, "check": check}
    together = Device(pages=pages, can_repeat=True, ready=lambda number: True, patience=patience)
    expected = alone(tokenizer, asked)
    assert held(together, tokenizer, asked, **options) == expected
    by_itself = Device(pages=pages, can_repeat=True, ready=lambda number: True, patience=patience)
    loop = loop_over(by_itself, tokenizer, **options)
    assert [finish(loop, submitted(loop, [one], 1.0))[0] for one in asked] == [
        replace(output, outputs=output.outputs) for output in expected
    ]
    assert any(step.repeats > 1 for step in by_itself.steps)


def test_one_launch_for_many_tokens(tokenizer: Tokenizer) -> None:
    """The prompt, then as many as the rest of the answer or the most that one launch may be."""
    device = Device(can_repeat=True, ready=lambda number: True)
    (output,) = held(device, tokenizer, [([5] * 3, replace(GREEDY, max_tokens=50))])
    assert len(output.outputs[0].token_ids) == 50
    assert [step.repeats for step in device.steps] == [1, MOST_REPEATS, 50 - 1 - MOST_REPEATS]


def test_nobody_repeats_unasked_or_where_the_executor_does_not(tokenizer: Tokenizer) -> None:
    for repeats, hold_s in ((True, 0.0), (False, 1.0)):
        device = Device(can_repeat=repeats, ready=lambda number: True)
        loop = loop_over(device, tokenizer)
        finish(loop, submitted(loop, [([5] * 3, GREEDY)], hold_s))
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
    device = Device(can_repeat=True, ready=lambda number: True)
    params = replace(GREEDY, **changed)  # type: ignore[arg-type]
    held(device, tokenizer, [([5] * 3, params)])
    assert all(step.repeats == 1 for step in device.steps)
    # Nor is anybody else's beside it.
    beside = Device(can_repeat=True, ready=lambda number: True)
    held(beside, tokenizer, [([5] * 3, replace(params, max_tokens=12)), ([6] * 3, GREEDY)])
    assert all(step.repeats == 1 for step in beside.steps)


def test_an_end_is_the_last_token_computed(tokenizer: Tokenizer) -> None:
    """Nothing is computed beyond the token that ends a request; whoever goes on, goes on from there."""
    drawn = alone(tokenizer, [([5, 6, 7], DRAWN)])[0].outputs[0].token_ids
    ending = replace(DRAWN, stop_token_ids=(drawn[6],))
    device = Device(can_repeat=True, ready=lambda number: True)
    first, other = held(device, tokenizer, [([5, 6, 7], ending), ([6] * 4, DRAWN)])
    assert first.outputs[0].token_ids == drawn[: drawn.index(drawn[6]) + 1] and first.outputs[0].stop_reason == drawn[6]
    assert other == alone(tokenizer, [([6] * 4, DRAWN)])[0]
    both = [step for step in device.steps if step.rows == 2]
    assert both[-1].repeats > 1 and [drawn[6]] == [token for row, token in both[-1].ends.tolist() if row == 0]
    alone_again = next(step for step in device.steps if step.rows == 1)
    assert int(alone_again.first[0]) == 4 + len(first.outputs[0].token_ids) - 1


def test_a_row_without_meaning_fails_and_keeps_what_came_before(tokenizer: Tokenizer) -> None:
    device = Device(can_repeat=True, ready=lambda number: True, spoilt=lambda position: position == 9)
    loop = loop_over(device, tokenizer)
    generations = submitted(loop, [([5] * 3, GREEDY), ([6] * 3, GREEDY)], 1.0)
    while not all(generation.ended for generation in generations):
        loop.step()
    bad, good = (generation.output() for generation in generations)
    expected = alone(tokenizer, [([5] * 3, GREEDY), ([6] * 3, GREEDY)])
    assert bad.outputs[0].finish_reason == "error" and "NaN" in (bad.error or "")
    assert bad.outputs[0].token_ids == expected[0].outputs[0].token_ids[:7]  # of positions 2 to 8
    assert good.outputs[0].token_ids == expected[1].outputs[0].token_ids


def test_who_comes_or_leaves_between_launches(tokenizer: Tokenizer) -> None:
    device = Device(can_repeat=True, ready=lambda number: True, patience=lambda number: 3)
    loop = loop_over(device, tokenizer)
    (first,) = submitted(loop, [([5] * 3, GREEDY)], 1.0)
    loop.step(), loop.step()
    assert len(first.output().outputs[0].token_ids) == 4
    second, third = submitted(loop, [([6] * 4, DRAWN), ([7] * 5, PLAIN)], 1.0)
    loop.step()
    assert device.steps[-1].repeats == 1  # somebody had been waiting
    loop.step()
    loop.cancel(third)
    finish(loop, [first, second])
    expected = alone(tokenizer, [([5] * 3, GREEDY), ([6] * 4, DRAWN)])
    assert [comparable(one).outputs for one in (first, second)] == [one.outputs for one in expected]


@pytest.mark.parametrize("patience", PATIENCE.values(), ids=PATIENCE)
def test_a_full_house_repeats_until_a_seat_is_free(tokenizer: Tokenizer, patience: Callable[[int], int]) -> None:
    """Whoever waits for a seat loses nothing: it is taken in the step after the one that freed it."""
    device = Device(can_repeat=True, ready=lambda number: True, patience=patience)
    loop = loop_over(device, tokenizer, max_num_seqs=2)
    lengths = [12, 30, 9, 21, 14]
    asked = [([5 + i] * (3 + i), replace(DRAWN, max_tokens=length, seed=i)) for i, length in enumerate(lengths)]
    asked.insert(1, ([10] * 2, replace(PLAIN, temperature=2.0, seed=9, stop_token_ids=range(3, 60))))
    generations = submitted(loop, asked, 1.0)
    crowded = 0
    while not all(generation.ended for generation in generations):
        waiting, before = len(loop.scheduler.waiting), len(device.steps)
        loop.step()
        crowded += sum(step.repeats > 1 and waiting > 0 for step in device.steps[before:])
    assert crowded > 1
    assert finish(loop, generations) == alone(tokenizer, asked)
    single = loop_over(Device(ready=lambda number: True), tokenizer, max_num_seqs=2)
    finish(single, submitted(single, asked, 0.0))
    assert loop.metrics()["steps"] <= single.metrics()["steps"]


def test_a_seat_that_is_given_up_is_taken(tokenizer: Tokenizer) -> None:
    """By the next launch after a cancellation, in the middle of what repeats."""
    device = Device(can_repeat=True, ready=lambda number: True, patience=lambda number: 3)
    loop = loop_over(device, tokenizer, max_num_seqs=2)
    asked = [([5 + i] * 3, replace(DRAWN, max_tokens=30, seed=i)) for i in range(3)]
    first, second, third = submitted(loop, asked, 1.0)
    loop.step(), loop.step()
    assert device.steps[-1].repeats > 1 and third.request.slot < 0
    loop.cancel(second)
    loop.step()
    assert third.request.slot >= 0
    expected = alone(tokenizer, asked)
    assert [one.outputs for one in finish(loop, [first, third])] == [expected[0].outputs, expected[2].outputs]


@pytest.mark.parametrize("pages", range(11, 22, 2))
def test_whoever_gave_way_goes_on_from_what_the_cache_still_has(tokenizer: Tokenizer, pages: int) -> None:
    """What is left of its tokens is computed like a prompt, which is not repeated, though it lies behind the prompt."""
    asked = [([5] * 9, replace(DRAWN, max_tokens=30)), ([6] * 8, replace(DRAWN, max_tokens=33, seed=2))]
    device = Device(pages=pages, can_repeat=True, ready=lambda number: True)
    loop = loop_over(device, tokenizer)
    assert finish(loop, submitted(loop, asked, 1.0)) == alone(tokenizer, asked)
    assert pages > 17 or loop.metrics()["preemptions"]


@pytest.mark.parametrize("patience", PATIENCE.values(), ids=PATIENCE)
def test_pages_are_held_as_by_single_steps(tokenizer: Tokenizer, patience: Callable[[int], int]) -> None:
    """What was taken for steps that were not computed goes back, so newcomers find their room; failures keep none."""
    device = Device(pages=20, can_repeat=True, ready=lambda number: True, patience=patience)
    device.fails = lambda when, number: (when, number) == ("wait", 5)
    loop = loop_over(device, tokenizer)
    generations = submitted(
        loop, [([5] * 6, replace(GREEDY, max_tokens=40)), ([6] * 7, replace(DRAWN, max_tokens=40))], 1.0
    )
    while not all(generation.ended for generation in generations):
        with contextlib.suppress(Broken):
            loop.step()
        for generation in generations:
            request = generation.request
            assert len(request.pages) <= -(-max(request.computed, len(request.tokens)) // 4)
    assert any(step.repeats > 1 for step in device.steps)


def test_cached_prefixes_stay_for_positions_that_may_never_come(tokenizer: Tokenizer) -> None:
    hits = []
    for hold_s in (0.0, 1.0):
        loop = loop_over(Device(pages=26, can_repeat=True, ready=lambda number: True), tokenizer)
        for again in range(8):
            ids = [20 + again % 4] * 20
            finish(loop, submitted(loop, [(ids, replace(DRAWN, max_tokens=30, stop_token_ids=range(150)))], hold_s))
        hits.append(loop.metrics()["prefix_hit_tokens"])
    assert hits[0] == hits[1] > 0


def test_who_is_read_along_decides_how_long_tokens_are_held(tokenizer: Tokenizer) -> None:
    device = Device(can_repeat=True, ready=lambda number: True, patience=lambda number: 2)
    loop = loop_over(device, tokenizer)
    generations = submitted(loop, [([5] * 3, replace(GREEDY, max_tokens=8))], 1.0)
    generations += submitted(loop, [([6] * 3, GREEDY)], 0.25)
    finish(loop, generations)
    held = [step.hold_s for step in device.steps if step.repeats > 1 and step.rows == 2]
    assert held and set(held) == {0.25}


def test_a_failure_in_the_middle_goes_on_from_what_was_read(tokenizer: Tokenizer) -> None:
    asked = [([5] * 3, GREEDY), ([6] * 4, DRAWN)]
    for when in ("launch", "wait"):
        device = Device(can_repeat=True, ready=lambda number: True, patience=lambda number: 3)
        device.fails = lambda happens, number, when=when: (happens, number) == (when, 2)  # type: ignore[misc]
        loop = loop_over(device, tokenizer)
        generations = submitted(loop, asked, 1.0)
        loop.step(), loop.step()
        with pytest.raises(Broken):
            loop.step()
        assert finish(loop, generations) == alone(tokenizer, asked)


def test_a_slot_has_its_own_ends(tokenizer: Tokenizer) -> None:
    """Who takes another's slot does not end by the tokens that ended the other."""
    drawn = alone(tokenizer, [([5, 6, 7], DRAWN)])[0].outputs[0].token_ids
    device = Device(can_repeat=True, ready=lambda number: True)
    loop = loop_over(device, tokenizer)
    first = finish(loop, submitted(loop, [([5, 6, 7], replace(DRAWN, stop_token_ids=(drawn[6],)))], 1.0))
    second = finish(loop, submitted(loop, [([5, 6, 7], DRAWN)], 1.0))
    assert len(first[0].outputs[0].token_ids) < len(second[0].outputs[0].token_ids) == len(drawn)


def test_counts_are_those_of_single_steps(tokenizer: Tokenizer) -> None:
    counted = []
    for hold_s in (0.0, 1.0):
        loop = loop_over(Device(can_repeat=True, ready=lambda number: True), tokenizer)
        finish(loop, submitted(loop, [([5] * 3, GREEDY), ([6] * 17, PLAIN)], hold_s))
        metrics = loop.metrics()
        counted.append({name: value for name, value in metrics.items() if not name.endswith(("_s", "_share"))})
    assert counted[0] == counted[1] and counted[0]["output_tokens"] > 0
