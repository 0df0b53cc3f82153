"""The loop: steps overlap, looking less often changes nothing, and what fails or leaves harms nobody else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import Loop
from allotrope.runtime.options import MOST_IN_FLIGHT
from allotrope.runtime.outputs import RequestOutput
from allotrope.runtime.request import Request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.tokenizers import Tokenizer
from tests.loop_kit import Broken, Device, byte_tokenizer, loop_over

Asked = list[tuple[list[int], SamplingParams]]

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, seed=1)
DRAWN = SamplingParams(max_tokens=20, temperature=1.0, seed=11, ignore_eos=True)
LOOKING = [(0, 1), (0, 2), (0, 5), (3, 1), (7, 3), (1000, 32)]
READY: dict[str, Callable[[int], bool]] = {
    "slow": lambda number: False,
    "at once": lambda number: True,
    "uneven": lambda number: number % 3 == 0,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> Asked:
    """Requests of every kind, with prompts from one token to many chunks."""
    text = alone(tokenizer, [([5, 6, 7], DRAWN)])[0].outputs[0].text
    return [
        ([5] * 3, GREEDY),
        ([6] * 17, SamplingParams(max_tokens=30, temperature=1.0, seed=3)),
        ([5, 6, 7], replace(DRAWN, stop=text[7:10])),
        ([5, 6, 7], replace(DRAWN, stop=sorted(set(text))[:16], min_tokens=9)),
        ([7, 8] * 5, replace(DRAWN, n=3, logprobs=2)),
        ([8] * 6, SamplingParams(max_tokens=9, temperature=0, beams=3, n=2, seed=1)),
        ([9] * 23, replace(GREEDY, repetition_penalty=1.7, frequency_penalty=0.5)),
        ([4] * 11, replace(GREEDY, logit_bias={7: -100.0}, logprobs=0, prompt_logprobs=2)),
        ([3], SamplingParams(max_tokens=1, temperature=0, seed=1)),
        ([10] * 2, SamplingParams(max_tokens=25, temperature=2.0, seed=9, stop_token_ids=range(3, 60), min_tokens=4)),
        ([7, 8] * 5, replace(DRAWN, seed=12, presence_penalty=1.0, stop="\0")),
    ]


def finish(loop: Loop, generations: list[Generation]) -> list[RequestOutput]:
    while not all(generation.ended for generation in generations):
        loop.step()
    loop.drain()
    check_idle(loop)
    return [comparable(generation) for generation in generations]


def run(loop: Loop, asked: Asked) -> list[RequestOutput]:
    return finish(loop, submitted(loop, asked))


def submitted(loop: Loop, asked: Asked, hold_s: float = 0.0) -> list[Generation]:
    generations = [loop.prepare(None, ids, params, index=i) for i, (ids, params) in enumerate(asked)]
    for generation in generations:
        loop.submit(generation, hold_s)
    return generations


def comparable(generation: Generation) -> RequestOutput:
    return replace(generation.output(), request_id="", num_cached_tokens=0)


def alone(tokenizer: Tokenizer, asked: Asked) -> list[RequestOutput]:
    """What each gets by itself, on a device that is never ahead."""
    return [run(loop_over(Device(ready=READY["at once"]), tokenizer), [one])[0] for one in asked]


def check_idle(loop: Loop) -> None:
    found = loop.metrics()
    assert not loop.busy and not loop._live
    assert (found["waiting"], found["running"], found["in_flight"], found["pages_used"]) == (0, 0, 0, 0)


def test_the_next_step_is_launched_before_the_last_one_is_read(tokenizer: Tokenizer) -> None:
    device = Device()
    run(loop_over(device, tokenizer), [([5] * 3, GREEDY), ([6] * 30, GREEDY)])
    last = len(device.steps) - 1
    place = {event: i for i, event in enumerate(device.events)}
    assert last > 11
    for number in range(last):
        assert place["launch", number + 1] < place["wait", number] < place["launch", min(number + 2, last)] or (
            number + 1 == last
        )
    # Decoding rows never had their token sent from here.
    assert all((step.tokens[-1] == -1) == bool(i) for i, step in enumerate(device.steps[3:], start=3))


def test_a_device_that_is_done_is_read_at_once(tokenizer: Tokenizer) -> None:
    device = Device(ready=READY["at once"])
    run(loop_over(device, tokenizer), [([5] * 3, GREEDY)])
    assert device.events == [(what, i) for i in range(12) for what in ("launch", "wait")]


def test_the_last_step_by_length_is_known_without_looking(tokenizer: Tokenizer) -> None:
    device = Device()
    run(loop_over(device, tokenizer, skip=1000), [([5] * 3, GREEDY)])
    assert [what for what, _ in device.events] == ["launch"] * 12 + ["wait"] * 12


@pytest.mark.parametrize("ready", READY)
@pytest.mark.parametrize(("skip", "check"), LOOKING)
def test_looking_less_often_changes_nothing(
    tokenizer: Tokenizer, asked: Asked, skip: int, check: int, ready: str
) -> None:
    expected = alone(tokenizer, asked)
    assert {answer.finish_reason for output in expected for answer in output.outputs} == {"stop", "length"}
    assert [len(output.outputs) for output in expected] == [1, 1, 1, 1, 3, 2, 1, 1, 1, 1, 1]
    for pages, prefix_cache in ((200, True), (15, True), (15, False)):
        device = Device(pages=pages, ready=READY[ready])
        loop = loop_over(device, tokenizer, skip=skip, check=check, prefix_cache=prefix_cache)
        assert run(loop, asked) == expected
        found = loop.metrics()
        assert found["finished"] == {"stop": 4, "length": 9} and bool(found["preemptions"]) == (pages == 15)


@pytest.mark.parametrize(("skip", "check"), LOOKING)
def test_how_often_is_looked(tokenizer: Tokenizer, skip: int, check: int) -> None:
    device = Device(pages=100)
    loop = loop_over(device, tokenizer, skip=skip, check=check)
    generations = submitted(loop, [([5] * 2, replace(GREEDY, max_tokens=60))])
    for launched in range(1, 60):
        loop.step()
        assert len(device.steps) == launched
        waited = sum(what == "wait" for what, _ in device.events)
        looked = max((i for i in range(skip + check, launched + 1, check)), default=None)
        least = max(launched - MOST_IN_FLIGHT, 0)
        assert waited == (least if looked is None else max(looked - 1, least))
    finish(loop, generations)


@pytest.mark.parametrize(("skip", "check"), LOOKING)
@pytest.mark.parametrize("ready", READY)
def test_deltas_make_the_whole(tokenizer: Tokenizer, asked: Asked, skip: int, check: int, ready: str) -> None:
    loop = loop_over(Device(ready=READY[ready]), tokenizer, skip=skip, check=check)
    generations = submitted(loop, asked)
    told = {(i, j): ["", (), None, ()] for i, (_, params) in enumerate(asked) for j in range(params.n)}
    while loop.busy:
        for generation in loop.step():
            for delta in generation.news():
                one = told[delta.index, delta.output]
                assert one[2] is None, "news after the end"
                one[0] += delta.text
                one[1] += delta.token_ids
                one[2] = delta.finish_reason
                one[3] += delta.logprobs or ()
        assert not [delta for generation in generations for delta in generation.news()]
    for generation in generations:
        for j, answer in enumerate(generation.output().outputs):
            whole = [answer.text, answer.token_ids, answer.finish_reason, answer.logprobs or ()]
            assert told[generation.index, j] == whole


def test_a_long_text_is_not_copied_for_each_token(tokenizer: Tokenizer) -> None:
    """What a token costs must not grow with the text before it."""
    loop = loop_over(Device(), tokenizer)
    [generation] = submitted(loop, [([5], replace(GREEDY, max_tokens=60, ignore_eos=True))])
    finish(loop, [generation])
    [answer] = generation._answers
    assert "".join(answer.pieces) == answer.text != ""
    assert max(map(len, answer.pieces)) < 10 and all(answer.pieces)


def test_tokens_end_where_a_stop_string_was_completed(tokenizer: Tokenizer) -> None:
    [free] = alone(tokenizer, [([5, 6, 7], DRAWN)])
    text, tokens = free.outputs[0].text, free.outputs[0].token_ids
    device = Device()
    [cut] = run(loop_over(device, tokenizer, check=8), [([5, 6, 7], replace(DRAWN, stop=text[7:10]))])
    answer = cut.outputs[0]
    assert answer.text == text[: text.index(text[7:10])] and answer.stop_reason == text[7:10]
    assert answer.token_ids == tokens[: len(answer.token_ids)]
    assert len(device.steps) > len(answer.token_ids), "no late token was drawn: nothing was tested"
    assert tokenizer.decode(list(answer.token_ids[:-1])) in text[: text.index(text[7:10]) + 3]


@pytest.mark.parametrize("least", [0, 1, 6, 13])
def test_minimum_tokens_count_for_stop_strings_too(tokenizer: Tokenizer, least: int) -> None:
    [free] = alone(tokenizer, [([5, 6, 7], DRAWN)])
    stream, shown = tokenizer.stream([5, 6, 7]), [""]
    for token in free.outputs[0].token_ids:
        shown.append(shown[-1] + stream.push(token))
    stops = sorted(set(shown[-1]))[:16]
    ends = [n for n, text in enumerate(shown) if any(stop in text[len(shown[least]) :] for stop in stops)]
    [cut] = run(loop_over(Device(), tokenizer), [([5, 6, 7], replace(DRAWN, stop=stops, min_tokens=least))])
    answer = cut.outputs[0]
    assert len(answer.token_ids) == ends[0] > least and answer.stop_reason in stops
    assert shown[-1].startswith(answer.text) and len(answer.text) >= len(shown[least])


def test_seeds_of_several_answers(tokenizer: Tokenizer) -> None:
    """Answer i is what the seed i higher gives alone, for a drawn seed as well."""
    for seed in (11, None, 2**63 - 2):
        [output] = alone(tokenizer, [([5, 6], replace(DRAWN, seed=seed, n=4))])
        seeds = [answer.seed for answer in output.outputs]
        assert [(seed - seeds[0]) % 2**64 for seed in seeds] == [0, 1, 2, 3]
        for i, answer in enumerate(output.outputs):
            [single] = alone(tokenizer, [([5, 6], replace(DRAWN, seed=answer.seed))])
            assert single.outputs == (replace(answer, index=0),) and answer.index == i


def test_beams_come_best_first(tokenizer: Tokenizer) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, beams=4, n=3, length_penalty=0.7)
    [output] = alone(tokenizer, [([5, 6], params)])
    scores = [answer.score for answer in output.outputs]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    for i, answer in enumerate(output.outputs):
        assert answer.index == i and answer.score == pytest.approx(
            answer.cumulative_logprob / len(answer.token_ids) ** 0.7
        )
        shown = [token for token in answer.token_ids if token != 2]
        assert answer.text == tokenizer.decode(shown)


def test_log_probabilities_of_the_prompt(tokenizer: Tokenizer) -> None:
    [output] = alone(tokenizer, [([9, 5, 7], replace(GREEDY, prompt_logprobs=2))])
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    for token, row, before in zip((5, 7), output.prompt_logprobs[1:], ([9], [9, 5]), strict=True):
        [after] = alone(tokenizer, [(before, replace(GREEDY, max_tokens=1, logprobs=20))])
        likely = after.outputs[0].logprobs
        assert row is not None and likely is not None and token in row
        best = sorted(likely[0].items(), key=lambda item: -item[1].logprob)[:2]
        assert {other: found.rank for other, found in row.items() if other != token} == {
            other: found.rank for other, found in best if other != token
        }
    assert alone(tokenizer, [([9], replace(GREEDY, prompt_logprobs=2))])[0].prompt_logprobs == (None,)


@pytest.mark.parametrize("when", ["launch", "wait"])
@pytest.mark.parametrize("number", [0, 1, 5, 11, 17])
def test_a_failed_step_changes_nothing(tokenizer: Tokenizer, asked: Asked, when: str, number: int) -> None:
    expected = alone(tokenizer, asked)
    device = Device(pages=30, fails=lambda what, n: (what, n) == (when, number))
    loop = loop_over(device, tokenizer, check=2)
    generations = submitted(loop, asked)
    with pytest.raises(Broken):
        while loop.busy:
            loop.step()
    assert 0 < len(loop.suspects) <= device.steps[number].rows
    assert finish(loop, generations) == expected


def test_a_step_that_cannot_be_planned_has_no_suspects(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_over(Device(), tokenizer)
    generations = submitted(loop, [([5] * 3, GREEDY)])
    loop.step()
    with monkeypatch.context() as patched:
        patched.setattr(loop.scheduler, "plan_step", lambda hold_s: None)
        loop.step()  # takes in what is in flight
        with pytest.raises(RuntimeError, match="no next step"):
            loop.step()
    assert loop.suspects is None
    assert finish(loop, generations) == alone(tokenizer, [([5] * 3, GREEDY)])


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_whoever_leaves_is_in_no_further_step(tokenizer: Tokenizer, asked: Asked, after: int) -> None:
    expected = alone(tokenizer, asked)
    for leaving in range(len(asked)):
        device = Device()
        loop = loop_over(device, tokenizer, check=3)
        generations = submitted(loop, asked)
        for _ in range(after):
            loop.step()
        gone = generations[leaving]
        ended = gone.ended
        loop.cancel(gone)
        tokens = [list(request.tokens) for request in gone.requests]
        reasons = {request.finish_reason for request in gone.requests}
        assert "abort" in reasons or ended
        left = [generation for generation in generations if generation is not gone]
        assert finish(loop, left) == [output for i, output in enumerate(expected) if i != leaving]
        assert [list(request.tokens) for request in gone.requests] == tokens, "a token after its end"
        loop.cancel(gone)  # leaving twice is leaving once


@pytest.mark.parametrize("shown", range(1, 12))
def test_who_leaves_in_the_middle_of_a_step_harms_nobody(
    tokenizer: Tokenizer, asked: Asked, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is garbage may be collected anywhere, also between two lines of a step."""
    expected, show, calls = alone(tokenizer, asked), Generation.show, itertools.count(1)
    loop = loop_over(Device(), tokenizer)
    generations = submitted(loop, asked)

    def collecting(generation: Generation, request: Request) -> str | None:
        if next(calls) == shown:
            for other in generations[1::2]:
                loop.cancel(other)
            loop.drain()
        return show(generation, request)

    monkeypatch.setattr(Generation, "show", collecting)
    outputs = finish(loop, generations)
    assert outputs[::2] == expected[::2]
    assert all(one.ended for one in generations)
    check_idle(loop)


def test_idleness_counts_only_with_work_at_hand(tokenizer: Tokenizer) -> None:
    device = Device()
    loop = loop_over(device, tokenizer)
    for times in (1, 2, 3):
        run(loop, [([5] * 3, GREEDY)])
        found = loop.metrics()
        assert found["steps"] == 12 * times
        assert found["busy_s"] == 0.5 * 12 * times
        assert found["idle_s"] == 0.25 * 11 * times
        assert found["idle_share"] == pytest.approx(found["idle_s"] / (found["idle_s"] + found["busy_s"]))
    assert found["output_tokens"] == 36 and found["finished"] == {"length": 3}


def test_cached_tokens_are_reported(tokenizer: Tokenizer) -> None:
    loop = loop_over(Device(), tokenizer)
    first = submitted(loop, [([5] * 21, GREEDY)])
    finish(loop, first)
    second = submitted(loop, [([5] * 21, GREEDY)])
    finish(loop, second)
    assert first[0].output().num_cached_tokens == 0
    output = second[0].output()
    assert output.num_cached_tokens == 20
    assert (output.usage.prompt_tokens, output.usage.completion_tokens, output.usage.total_tokens) == (21, 12, 33)
    assert output.usage.cached_tokens == 20
