"""LLM: prompts of every shape, streaming, ends, seeds, log-probabilities, limits and what they say when broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.api import LLM, Delta, RequestOutput, SamplingParams
from allotrope.errors import EngineError, OutOfMemory, RequestError, UsageError
from allotrope.models.recipe import Attention, Mlp
from allotrope.runtime.generation import Generation
from allotrope.runtime.options import RuntimeOptions, parse_size
from tests.engines import LLAMA, VOCAB, naive, plan_of, random_weights, write

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("engine") / "llama", plan_of(LLAMA), random_weights(LLAMA))


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), threads=1, page_size=4, max_num_seqs=4, max_batched_tokens=16) as made:
        yield made


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """Every test must leave the engine as it found it: idle, with all pages free."""
    yield shared
    assert not shared._loop.busy and not shared._loop._live
    assert shared.metrics()["pages_used"] == 0


def ids_of(outputs: list[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in outputs]


def greedy(prompt: list[int], count: int) -> tuple[int, ...]:
    tokens, weights = list(prompt), random_weights(LLAMA)
    for _ in range(count):
        tokens.append(int(naive(LLAMA, weights, tokens)[-1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_text_and_token_ids_and_dicts_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello")
    shapes: list[Any] = ["hello", ["hello"], ids, [ids], {"prompt": "hello"}, [{"prompt_token_ids": ids}], (ids,)]
    for shape in shapes:
        [output] = llm.generate(shape, GREEDY)
        assert output.outputs[0].token_ids == greedy(ids, 12)
        assert output.prompt_token_ids == tuple(ids) and output.finished
        assert output.prompt in ("hello", None)
        assert output.outputs[0].finish_reason == "length"
        assert output.outputs[0].text == llm.tokenizer.decode(list(output.outputs[0].token_ids))


def test_numpys_integers_are_integers(llm: LLM) -> None:
    ids = list(np.arange(5, 9))
    assert ids_of(llm.generate(ids, GREEDY)) == ids_of(llm.generate([5, 6, 7, 8], GREEDY))
    options = RuntimeOptions(max_num_seqs=np.int64(3), threads=np.int32(1))  # type: ignore[arg-type]
    assert (options.max_num_seqs, options.threads) == (3, 1) and type(options.max_num_seqs) is int


def test_more_prompts_than_slots_come_back_in_order(llm: LLM) -> None:
    prompts = ["a" * n for n in range(1, 20)]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert len({output.request_id for output in outputs}) == 19
    assert ids_of(outputs) == [greedy(llm.tokenizer.encode(prompt), 12) for prompt in prompts]
    assert llm.generate([], GREEDY) == []


def test_parameters_for_all_or_for_each(llm: LLM) -> None:
    each = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (1, 2, 3)]
    assert [len(ids) for ids in ids_of(llm.generate(["a", "b", "c"], each))] == [1, 2, 3]
    assert 1 <= len(ids_of(llm.generate("a"))[0]) <= 16
    with pytest.raises(RequestError, match="sampling_params holds 3 entries for 2 prompts"):
        llm.generate(["a", "b"], each)
    with pytest.raises(RequestError, match="must be SamplingParams"):
        llm.generate("a", {"temperature": 0})  # type: ignore[arg-type]


def test_an_empty_prompt_begins_a_text(llm: LLM, tmp_path: Path) -> None:
    for empty in ("", [[]], {"prompt": ""}, {"prompt_token_ids": []}):
        [output] = llm.generate(empty, GREEDY)
        assert output.prompt_token_ids == (1,)
        assert output.outputs[0].token_ids == greedy([1], 12)
    without = write(tmp_path / "engine", plan_of(LLAMA), random_weights(LLAMA), bos_token_id=None)
    with (
        LLM(without) as other,
        pytest.raises(RequestError, match=r"prompts\[1\].prompt_token_ids is empty.*no token to begin"),
    ):
        other.generate([{"prompt_token_ids": [5]}, {"prompt_token_ids": []}])


def test_streamed_pieces_make_the_whole(llm: LLM) -> None:
    prompts = ["one", "three", "four", "seven", "eight"]
    params = SamplingParams(max_tokens=20, temperature=1.5, seed=4)
    whole = llm.generate(prompts, params)
    texts, ids, ends = [""] * 5, [()] * 5, [None] * 5
    for delta in llm.stream(prompts, params):
        assert ends[delta.index] is None
        texts[delta.index] += delta.text
        ids[delta.index] += delta.token_ids
        ends[delta.index] = delta.finish_reason
    assert texts == [output.outputs[0].text for output in whole]
    assert ids == ids_of(whole)
    assert ends == [output.outputs[0].finish_reason for output in whole]


def test_a_streams_step_looks_only_at_who_has_news(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step costs must not grow with how many prompts wait."""
    asked, news, ended = [], Generation.news, Generation.ended.fget

    def counting(generation: Generation) -> Iterator[Delta]:
        asked.append(generation)
        return news(generation)

    monkeypatch.setattr(Generation, "news", counting)
    monkeypatch.setattr(Generation, "ended", property(lambda generation: asked.append(generation) or ended(generation)))
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    deltas = list(llm.stream([[5, 6]] * 100, params))
    assert sum(len(delta.token_ids) for delta in deltas) == 300
    assert len(asked) <= 2 * len(deltas)


def test_a_stream_hears_of_what_others_steps_ended(llm: LLM) -> None:
    whole = llm.generate(["left", "right"], GREEDY)
    stream = llm.stream(["left", "right"], GREEDY)
    first = next(stream)
    llm.generate("another", SamplingParams(max_tokens=60, temperature=0, ignore_eos=True))
    rest = list(stream)
    for index, output in enumerate(whole):
        mine = [delta for delta in (first, *rest) if delta.index == index]
        assert tuple(token for delta in mine for token in delta.token_ids) == output.outputs[0].token_ids
        assert mine[-1].finish_reason == output.outputs[0].finish_reason


def test_two_streams_at_once_each_get_all_of_theirs(llm: LLM) -> None:
    expected = ids_of(llm.generate(["left", "right"], GREEDY))
    streams, found = [llm.stream("left", GREEDY), llm.stream("right", GREEDY)], [(), ()]
    live = {0, 1}
    while live:
        for i in sorted(live):
            delta = next(streams[i], None)
            if delta is None:
                live.discard(i)
            else:
                found[i] += delta.token_ids
    assert found == expected


def test_a_stream_left_early_frees_its_pages(llm: LLM) -> None:
    stream = llm.stream(["one", "two", "three", "four", "five", "six"], GREEDY)
    next(stream)
    assert llm._loop.busy
    stream.close()
    assert not llm._loop.busy
    llm.stream("never begun", GREEDY)


def test_a_failing_step_leaves_an_idle_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def interrupted(step: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(llm._executor, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b"], GREEDY)
    assert not llm._loop.busy
    assert ids_of(llm.generate("a", GREEDY)) == [greedy(llm.tokenizer.encode("a"), 12)]


def test_stop_strings_cut_exactly(llm: LLM) -> None:
    [free] = llm.generate("x", GREEDY)
    text, tokens = free.outputs[0].text, free.outputs[0].token_ids
    assert len(text) > 11
    for start, size in ((3, 1), (7, 4), (len(text) - 2, 2)):
        stop = text[start : start + size]
        params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, stop=stop)
        [output] = llm.generate("x", params)
        answer = output.outputs[0]
        assert answer.text == text[: text.index(stop)]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        assert answer.token_ids == tokens[: len(answer.token_ids)]
        assert "".join(delta.text for delta in llm.stream("x", params)) == answer.text
    # what was held back, because a stop string might have followed, comes at the end
    begun = [text[-2:] + "\x00", text[-1] + "\x00\x00"]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, stop=begun)
    assert llm.generate("x", params)[0].outputs[0].text == text


def test_stop_tokens_end_without_their_text(llm: LLM, tmp_path: Path) -> None:
    [free] = llm.generate("x", GREEDY)
    tokens = free.outputs[0].token_ids
    last = next(token for token in tokens[2:] if token not in tokens[:2])
    cut = tokens[: tokens.index(last) + 1]
    [output] = llm.generate("x", SamplingParams(max_tokens=12, temperature=0, stop_token_ids=[last], ignore_eos=True))
    assert output.outputs[0].token_ids == cut
    assert output.outputs[0].text == llm.tokenizer.decode(list(cut[:-1]))
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", last)
    # the engine's own end of text does the same
    engine = write(tmp_path / "engine", plan_of(LLAMA), random_weights(LLAMA), eos_token_ids=[last])
    with LLM(engine) as other:
        params = SamplingParams(max_tokens=12, temperature=0)
        assert other.generate("x", params)[0].outputs[0].token_ids == cut
        assert other.generate("x", GREEDY)[0].outputs[0].token_ids == tokens


def test_seeds_are_recorded_and_repeat(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True)
    first, second = llm.generate(["x", "x"], params)
    assert first.outputs[0].seed != second.outputs[0].seed
    assert first.outputs[0].token_ids != second.outputs[0].token_ids
    again = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True, seed=first.outputs[0].seed)
    assert ids_of(llm.generate("x", again)) == ids_of([first])


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=1.7, seed=3, ignore_eos=True, logprobs=2)
    [output] = llm.generate("x", params)
    answer = output.outputs[0]
    tokens = [*output.prompt_token_ids, *answer.token_ids]
    expected = naive(LLAMA, random_weights(LLAMA), tokens[:-1]).log_softmax(-1)[-5:]
    assert answer.logprobs is not None and len(answer.logprobs) == 5
    for token, row, truth in zip(answer.token_ids, answer.logprobs, expected, strict=True):
        ranks = truth.argsort(descending=True).tolist()
        assert set(row) == {token, *ranks[:2]}
        for other, found in row.items():
            assert found.logprob == pytest.approx(float(truth[other]), abs=2e-5)
            assert found.rank == (ranks.index(other) + 1 if other in ranks[:2] else None)
            assert found.decoded_token == llm.tokenizer.decode([other], False)
    drawn = [row[token].logprob for token, row in zip(answer.token_ids, answer.logprobs, strict=True)]
    assert answer.cumulative_logprob == pytest.approx(sum(drawn))
    assert llm.generate("x", GREEDY)[0].outputs[0].logprobs is None


def test_the_length_limit(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True)
    [output] = llm.generate({"prompt_token_ids": [5] * 60}, params)
    assert len(output.outputs[0].token_ids) == 4 and output.outputs[0].finish_reason == "length"
    [output] = llm.generate({"prompt_token_ids": [5] * 64}, params)
    assert len(output.outputs[0].token_ids) == 1
    with pytest.raises(RequestError, match="65 tokens long; the limit is 64"):
        llm.generate({"prompt_token_ids": [5] * 65}, params)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([["ok"]], r"prompt_token_ids\[0\] is 'ok'"),
        ({"prompt_token_ids": [VOCAB]}, rf"prompt_token_ids\[0\] is {VOCAB}; it must be from 0 to {VOCAB - 1}"),
        ([[5], [-3]], r"^prompts\[1\]: prompt_token_ids\[0\] is -3"),
        ([[5], [5] * 65], r"^prompts\[1\]: the prompt is 65 tokens long; the limit is 64"),
        (["x", "half \ud83d"], r"^prompts\[1\]: the text has half a surrogate pair at character 5"),
        ({"text": "x"}, r"prompts\[0\] has the keys \['text'\]"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "must have prompt or prompt_token_ids"),
        (5, "prompts is of type int"),
        ([None], r"prompts\[0\] is of type NoneType"),
        ({"prompt_token_ids": "abc"}, r"prompts\[0\].prompt_token_ids is of type str"),
        ({"prompt": [5]}, r"prompts\[0\].prompt is of type list"),
        ("half \ud83d", "half a surrogate pair at character 5"),
    ],
)
def test_bad_prompts_say_so_and_leave_nothing_behind(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)
    with pytest.raises(RequestError, match=message):
        llm.stream(prompts, GREEDY)


def test_a_good_prompt_beside_a_bad_one_is_not_queued(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.generate(["good", {"prompt_token_ids": [10**9]}], GREEDY)
    assert not llm._loop.busy


def test_unknown_options_name_the_nearest(folder: Path) -> None:
    with pytest.raises(UsageError, match="no option 'max_num_seq'; did you mean max_num_seqs"):
        LLM(folder, max_num_seq=3)
    with pytest.raises(UsageError, match="tune is an option of building"):
        LLM(folder, tune="off")
    with pytest.raises(UsageError, match="page_size is 0; it must be a whole number from 1"):
        LLM(folder, page_size=0)
    with pytest.raises(UsageError, match="max_len is 100; the engine's limit is 64"):
        LLM(folder, max_len=100)


def test_memory_for_keys_and_values(folder: Path) -> None:
    page = 2 * 2 * 4 * 16 * 4  # layers, k and v, tokens, width, bytes
    with LLM(folder, page_size=4, kv_memory=3 * page + 7) as llm:
        assert llm._executor.pages == 3
        assert len(ids_of(llm.generate([[5] * 5] * 4, SamplingParams(max_tokens=8, ignore_eos=True)))) == 4
        with pytest.raises(RequestError, match="need 4 KV pages of 4 tokens; 3 are available"):
            llm.generate([[5] * 5], SamplingParams(max_tokens=9))
    with pytest.raises(OutOfMemory, match=f"needs {page} bytes, {page - 1} are available"):
        LLM(folder, page_size=4, kv_memory=page - 1)
    with pytest.raises(OutOfMemory, match=r"needs 1\.1 TB, 1\.07 GB are available; lower kv_memory"):
        RuntimeOptions(kv_memory="1TiB", max_num_seqs=4096).pages(2**20, 2**20, 2**30, 0.5)
    with LLM(folder, max_num_seqs=3, page_size=4) as llm:
        assert llm._executor.pages == 3 * 16


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("1.5 gb", 1_500_000_000), ("4k", 4096), (17, 17), ("512MiB", 2**29), ("9B", 9)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size("kv_memory", text) == size


@pytest.mark.parametrize("text", ["", "two", "-1", 0, 1.5, "0", "1XB", "1e9", "9" * 30, None, True])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(UsageError, match=r"kv_memory is .*2GiB"):
        parse_size("kv_memory", text)


def test_a_corrupted_weight_is_one_requests_error(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["embed.weight"][99] = torch.nan
    with LLM(write(tmp_path / "engine", plan_of(LLAMA), weights)) as llm:
        bad, good = llm.generate([[99], [98]], SamplingParams(max_tokens=1, temperature=0))
        assert bad.outputs[0].finish_reason == "error" and bad.outputs[0].text == ""
        assert bad.error is not None and f"request {bad.request_id}" in bad.error and "NaN" in bad.error
        assert good.error is None and good.outputs[0].finish_reason == "length"
        assert [delta.error is None for delta in llm.stream([[99]], GREEDY)] == [False]


def test_closed_is_closed(folder: Path) -> None:
    with LLM(folder) as llm:
        pass
    with pytest.raises(UsageError, match="has been closed"):
        llm.generate("x")


def test_an_engine_without_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises((EngineError, UsageError)) as caught:
        LLM(tmp_path / "nothing here")
    assert "nothing here" in str(caught.value)


def test_loading_maps_the_weights_and_copies_none(tmp_path: Path) -> None:
    """Memory that is the process's own stays far below the weights' size, after a token has been generated."""
    block = replace(LLAMA.blocks[0], mlp=Mlp(4096, "silu", gated=True), attention=Attention(8, 8, 96))
    recipe = replace(LLAMA, hidden=768, blocks=(block,) * 2)
    weights = random_weights(recipe)
    size = sum(value.nbytes for value in weights.values())
    assert size > 90e6
    folder = write(tmp_path / "engine", plan_of(recipe), weights)
    code = f"""
import re, torch
from pathlib import Path
from allotrope.api import LLM, SamplingParams
own = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
LLM({str(tmp_path / "small")!r}, threads=1).generate("x", SamplingParams(max_tokens=1))
before = own()
LLM({str(folder)!r}, threads=1).generate("x", SamplingParams(max_tokens=1))
print(own() - before)
"""
    write(tmp_path / "small", plan_of(LLAMA), random_weights(LLAMA))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.4 * size
