"""LLM: several answers, beams, conversations, priorities, counters, and options that change no answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allotrope.api import LLM, AsyncLLM, RequestOutput, SamplingParams
from allotrope.errors import RequestError, UsageError
from allotrope.runtime.options import RuntimeOptions
from tests.engines import LLAMA, naive, plan_of, random_weights, write

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, seed=1)
DRAWN = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True, seed=5, logprobs=2)
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
KINDS = [
    GREEDY,
    DRAWN,
    replace(DRAWN, n=3, stop="\n"),
    SamplingParams(max_tokens=8, temperature=0, beams=3, n=2, seed=1),
    replace(GREEDY, repetition_penalty=1.4, presence_penalty=0.5, bad_words=["a"], prompt_logprobs=2),
    SamplingParams(max_tokens=30, temperature=1.5, seed=2, min_tokens=3, logit_bias={2: 5.0}),
]
PROMPTS: list[Any] = ["one", "twenty-two tokens long", "three", "four", "five and more", [9] * 33]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with a chat template."""
    folder = tmp_path_factory.mktemp("engine") / "llama"
    return write(folder, plan_of(LLAMA), random_weights(LLAMA), chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=1, page_size=4, max_num_seqs=4, max_batched_tokens=16) as made:
        yield made


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[RequestOutput]:
    """What each request gets by itself."""
    return [bare(llm.generate([prompt], params)[0]) for prompt, params in zip(PROMPTS, KINDS, strict=True)]


def bare(output: RequestOutput) -> RequestOutput:
    return replace(output, request_id="", num_cached_tokens=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"check_step": 8},
        {"skip_step": 7, "check_step": 3},
        {"skip_step": 1000},
        {"prefix_cache": False, "max_batched_tokens": 5, "max_num_seqs": 3},
        {"kv_memory": 16 * 2 * 2 * 4 * 16 * 4, "max_num_seqs": 8, "check_step": 2},
        {"policy": "priority", "executor": "eager"},
    ],
)
def test_options_change_no_answer(folder: Path, expected: list[RequestOutput], options: dict[str, Any]) -> None:
    """To the bit, for every kind of request, streamed or not, sync or async."""
    given = {"threads": 1, "page_size": 4, "max_num_seqs": 4, "max_batched_tokens": 16} | options
    with LLM(folder, **given) as other:
        assert [bare(output) for output in other.generate(PROMPTS, KINDS)] == expected
        deltas = other.stream(PROMPTS, KINDS)
        texts = dict[tuple[int, int], str]()
        for delta in deltas:
            texts[delta.index, delta.output] = texts.get((delta.index, delta.output), "") + delta.text
        assert [bare(output) for output in deltas.outputs()] == expected
        assert texts == {(i, one.index): one.text for i, output in enumerate(expected) for one in output.outputs}
        found = other.metrics()
        assert found["running"] == found["waiting"] == found["in_flight"] == found["pages_used"] == 0
        assert bool(found["preemptions"]) == ("kv_memory" in options)

    async def ask() -> list[RequestOutput]:
        async with AsyncLLM(folder, **given) as engine:
            answers = (engine.answer(prompt, params) for prompt, params in zip(PROMPTS, KINDS, strict=True))
            return [bare(output) for output in await asyncio.gather(*answers)]

    assert asyncio.run(ask()) == expected


def test_several_answers_are_those_of_the_seeds_that_follow(llm: LLM) -> None:
    [output] = llm.generate("x", replace(DRAWN, n=4))
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    assert [answer.seed for answer in output.outputs] == [5, 6, 7, 8]
    assert len({answer.token_ids for answer in output.outputs}) == 4
    for answer in output.outputs:
        [single] = llm.generate("x", replace(DRAWN, seed=answer.seed))
        assert single.outputs[0] == replace(answer, index=0)
    assert output.usage.completion_tokens == 48 and output.finished


def test_beams_beat_greedy_and_add_up(llm: LLM) -> None:
    [output] = llm.generate([[5, 6]], SamplingParams(max_tokens=8, temperature=0, beams=4, n=4, ignore_eos=True))
    [greedy] = llm.generate([[5, 6]], replace(GREEDY, max_tokens=8))
    scores = [answer.score for answer in output.outputs]
    assert scores == sorted(scores, key=lambda score: -(score or 0)) and len(scores) == 4
    assert output.outputs[0].cumulative_logprob >= greedy.outputs[0].cumulative_logprob - 1e-5
    weights = random_weights(LLAMA)
    for answer in output.outputs:
        tokens = [5, 6, *answer.token_ids]
        truth = naive(LLAMA, weights, tokens[:-1]).log_softmax(-1)[1:]
        total = sum(float(row[token]) for row, token in zip(truth, answer.token_ids, strict=True))
        assert answer.cumulative_logprob == pytest.approx(total, abs=1e-4)
        assert answer.score == pytest.approx(total / 8, abs=1e-4)


def test_prompt_logprobs(llm: LLM) -> None:
    [output] = llm.generate("hello", replace(GREEDY, prompt_logprobs=2, max_tokens=2))
    ids = list(output.prompt_token_ids)
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(ids)
    assert output.prompt_logprobs[0] is None
    truth = naive(LLAMA, random_weights(LLAMA), ids[:-1]).log_softmax(-1)
    for token, row, values in zip(ids[1:], output.prompt_logprobs[1:], truth, strict=True):
        best = values.argsort(descending=True).tolist()[:2]
        assert row is not None and set(row) == {token, *best}
        for other, found in row.items():
            assert found.logprob == pytest.approx(float(values[other]), abs=2e-5)
            assert found.rank == (best.index(other) + 1 if other in best else None)
            assert found.decoded_token == llm.tokenizer.decode([other], False)
    assert llm.generate("hello", GREEDY)[0].prompt_logprobs is None


def test_conversations(llm: LLM) -> None:
    talk = [{"role": "user", "content": "hi"}]
    [expected] = llm.generate([llm.tokenizer.chat_ids(talk)], GREEDY)
    for messages in (talk, tuple(talk), [talk]):
        [output] = llm.chat(messages, GREEDY)
        assert output.outputs == expected.outputs and output.prompt_token_ids == expected.prompt_token_ids
    longer = [*talk, {"role": "assistant", "content": "you"}, {"role": "user", "content": "go"}]
    both = llm.chat([talk, longer], [GREEDY, replace(GREEDY, max_tokens=3)])
    assert both[0].outputs == expected.outputs and len(both[1].outputs[0].token_ids) == 3
    assert both[1].prompt_token_ids == tuple(llm.tokenizer.chat_ids(longer))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages has 0 entries, not 1 to 1,024"),
        ([[]], "messages has 0 entries"),
        ("hi", "messages is of type str; it must be a list of messages"),
        ({"role": "user", "content": "hi"}, "messages is of type dict"),
        ([{"content": "hi"}], r"messages\[0\] has no role"),
        ([{"role": "user", "content": "hi"}, 5], r"messages\[1\] has no role"),
        ([{"role": "user", "content": "x"}] * 2000, "messages has 2,000 entries"),
    ],
)
def test_conversations_that_are_none(llm: LLM, messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.chat(messages, GREEDY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": 5}, "tools is 5; it must be a list of mappings"),
        ({"tools": ["x"]}, r"tools is \['x'\]; it must be a list of mappings"),
        ({"variables": 5}, "variables is 5; it must map names to values"),
        ({"variables": {1: 2}}, "variables is {1: 2}; it must map names to values"),
    ],
)
def test_what_a_template_is_given(llm: LLM, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.chat([{"role": "user", "content": "x"}], **given)


def test_priorities(folder: Path) -> None:
    with LLM(folder, threads=1, policy="priority", max_num_seqs=1) as llm:
        order = []
        for delta in llm.stream(["a", "b", "c", "d"], GREEDY, priority=[3, -1, 2, 0]):
            if delta.finish_reason is not None:
                order.append(delta.index)
        assert order == [1, 3, 2, 0]
        for priority, message in (
            ([1, 2], "priority holds 2 entries for 1 prompts"),
            (1.5, r"priority\[0\] is 1.5; it must be a whole number from -2147483648 to 2147483647"),
            (True, r"priority\[0\] is True"),
            (2**31, r"priority\[0\] is 2147483648; it must be a whole number from"),
        ):
            with pytest.raises(RequestError, match=message):
                llm.generate("a", GREEDY, priority=priority)  # type: ignore[arg-type]
    with LLM(folder, threads=1) as llm, pytest.raises(RequestError, match=r"priority\[1\] is 2.*policy='priority'"):
        llm.generate(["a", "b"], GREEDY, priority=[0, 2])


def test_counters(folder: Path) -> None:
    with LLM(folder, threads=1, page_size=4) as llm:
        empty = llm.metrics()
        assert empty["steps"] == empty["output_tokens"] == empty["idle_share"] == 0
        llm.generate([[5] * 21] * 2, GREEDY)
        first = llm.metrics()
        assert (first["prompt_tokens"], first["output_tokens"], first["finished"]) == (42, 24, {"length": 2})
        [output] = llm.generate([[5] * 21], GREEDY)
        second = llm.metrics()
        assert output.num_cached_tokens == output.usage.cached_tokens == 20
        assert second["prefix_hit_tokens"] - first["prefix_hit_tokens"] == 20
        assert second["steps"] == first["steps"] + 12
        assert second["busy_s"] > 0 and 0 < second["idle_share"] < 1
        assert second["pages_free"] + second["pages_cached"] == empty["pages_free"]
    with pytest.raises(UsageError, match="has been closed"):
        llm.metrics()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("check_step", 0, "check_step is 0; it must be a whole number from 1 to 32"),
        ("check_step", 33, "check_step is 33"),
        ("check_step", True, "check_step is True"),
        ("max_num_seqs", 10**40, "max_num_seqs is an integer of 133 bits; it must be a whole number from 1 to 4096"),
        ("skip_step", -1, "skip_step is -1; it must be a whole number from 0 to 1048576"),
        ("policy", "random", "policy is 'random'; it must be one of fcfs, priority"),
        ("prefix_cache", "yes", "prefix_cache is 'yes'; it must be True or False"),
        ("executor", "cuda", "executor is 'cuda'; it must be one of auto, native, eager, graph"),
        ("executor", ["eager"], "executor is"),
    ],
)
def test_options_out_of_bounds(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RuntimeOptions(**{name: value})


def test_a_graph_needs_a_gpu(folder: Path) -> None:
    with pytest.raises(UsageError, match="executor is 'graph'; on a CPU it must be native or eager"):
        LLM(folder, executor="graph", device="cpu")


def test_memory_given_by_name_is_all_used_by_the_prefix_cache(folder: Path) -> None:
    page = 2 * 2 * 4 * 16 * 4  # layers, k and v, tokens, width, bytes
    for prefix_cache, pages in ((True, 99), (False, 16)):
        with LLM(folder, page_size=4, kv_memory=99 * page, max_num_seqs=1, prefix_cache=prefix_cache) as llm:
            assert llm._executor.pages == pages


def test_the_launch_is_few_frames_below_generate(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between a caller and the device can be read in one sitting."""
    depths = []
    launch = llm._executor.launch

    def seen(step: Any) -> Any:
        frame, depth = inspect.currentframe(), 1
        while frame is not None and frame.f_code is not LLM.generate.__code__:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)
        return launch(step)

    monkeypatch.setattr(llm._executor, "launch", seen)
    llm.generate("x", GREEDY)
    assert len(depths) == 12 and max(depths) <= 8
