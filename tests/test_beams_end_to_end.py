"""Beams and several answers through the whole engine: what transformers gives, whoever shares batch and pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.api import LLM, CompletionOutput, RequestOutput, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.runtime.buffers import page_bytes
from tests.tiny import LIMIT, oracle
from tests.verifying import CPU, VOCAB, Forge

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("llama", "llama-grouped", "gpt2", "opt", "qwen", "decicoder")
PAD = VOCAB - 1
MANY = tuple(range(3, 63))  # a quarter of the vocabulary, so that most beams end, and at different lengths
NEARLY_ALL = tuple(range(90))  # beams must then bring more candidates than there are words
LONG = [(7 * i * i + 3 * i) % VOCAB for i in range(41)]


@dataclass(frozen=True)
class Search:
    """A beam search to ask for, of us and of transformers."""

    prompt: list[int]
    beams: int
    n: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    max_tokens: int = 14
    ends: tuple[int, ...] = ()  # besides the model's own

    @property
    def params(self) -> SamplingParams:
        """As we are asked."""
        names = ("beams", "n", "length_penalty", "early_stopping", "max_tokens")
        given = {name: getattr(self, name) for name in names}
        return SamplingParams(temperature=0, stop_token_ids=self.ends, logprobs=0, seed=0, **given)


SEARCHES = (
    Search([5, 9, 3], 2, 2, max_tokens=40),
    Search(LONG, 4, 1, 0.0, True),
    Search([100, 4, 77, 21, 8, 8, 8], 5, 5, 2.0, "never"),
    Search([1], 3, 2, -0.5, ends=MANY),
    Search(LONG[:16], 4, 3, 1.0, True, ends=MANY),
    Search(LONG[:17], 2, 1, 1.5, "never", 20, MANY),
    Search([60, 61], 3, 3, ends=NEARLY_ALL),
    Search([*LONG, *LONG][: LIMIT - 5], 3, 2, max_tokens=30),  # clipped where the model's length ends
    Search([*LONG, *LONG][:LIMIT], 3, 3, max_tokens=30),  # which leaves one token
    Search([9] * 12, 6, 6, max_tokens=1),
)


@dataclass
class Made:
    """One kind's engine, and the texts and scores that transformers gives to each search."""

    path: Path
    expected: list[tuple[list[tuple[int, ...]], list[float]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(forge: Forge, request: pytest.FixtureRequest) -> Made:
    found = Made(forge.built(request.param))
    original = oracle(Path(str(open_engine(found.path, device=CPU).manifest.source["path"])))
    with LLM(found.path, threads=1) as llm:
        own = llm.limits.eos_ids
    assert own
    found.expected = [theirs(original, search, {*own, *search.ends}) for search in SEARCHES]
    return found


def theirs(original: Any, search: Search, ends: set[int]) -> tuple[list[tuple[int, ...]], list[float]]:
    ids = torch.tensor([search.prompt])
    found = original.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=search.beams,
        num_return_sequences=search.n,
        do_sample=False,
        max_new_tokens=min(search.max_tokens, max(LIMIT - len(search.prompt), 1)),
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
        eos_token_id=sorted(ends),
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = [row[len(search.prompt) :].tolist() for row in found.sequences]
    return [until(row, ends) for row in rows], found.sequences_scores.tolist()


def until(row: list[int], ends: set[int]) -> tuple[int, ...]:
    """The row up to and with its first end."""
    last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return tuple(row[: last + 1])


def assert_theirs(outputs: Sequence[RequestOutput], made: Made, ends: Sequence[int]) -> None:
    for search, output, (texts, scores) in zip(SEARCHES, outputs, made.expected, strict=True):
        answers = output.outputs
        assert [answer.token_ids for answer in answers] == texts, search
        assert [answer.score for answer in answers] == pytest.approx(scores, rel=1e-5), search
        for answer in answers:
            ended = answer.token_ids[-1] in {*ends, *search.ends}
            assert answer.finish_reason == ("stop" if ended else "length")
            assert answer.stop_reason == (answer.token_ids[-1] if ended else None)
            assert answer.score is not None
            scale = len(answer.token_ids) ** search.length_penalty
            assert answer.cumulative_logprob == pytest.approx(answer.score * scale, rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "pages of 1": {"page_size": 1, "max_batched_tokens": 7, "check_step": 8},
    "pages of 3": {"page_size": 3, "prefix_cache": False, "max_num_seqs": 7, "skip_step": 5, "check_step": 4},
    "pages of 16": {"page_size": 16, "max_batched_tokens": 9, "max_num_seqs": 6, "check_step": 32},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_beams_are_those_of_transformers(made: Made, options: dict[str, Any]) -> None:
    with LLM(made.path, threads=1, max_len=LIMIT, **options) as llm:
        asked = [search.prompt for search in SEARCHES]
        outputs = llm.generate(asked, [search.params for search in SEARCHES])
        assert_theirs(outputs, made, llm.limits.eos_ids)
        lengths = {len(answer.token_ids) for output in outputs for answer in output.outputs}
        assert len(lengths) > 4, "ends come early, late and not at all"
        [again] = llm.generate([SEARCHES[1].prompt], SEARCHES[1].params)
        assert again.outputs == outputs[1].outputs, "to the bit"
        assert bool(again.num_cached_tokens) == options.get("prefix_cache", True)
        assert llm.metrics()["pages_used"] == 0


OTHERS = (
    ([3] * 9, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, seed=1)),
    ([250, 17], SamplingParams(max_tokens=35, temperature=1.2, ignore_eos=True, seed=2, n=3, logprobs=1)),
    (LONG[:20], SamplingParams(max_tokens=40, temperature=0.8, top_k=20, seed=3, presence_penalty=0.5)),
    (LONG[:19], SamplingParams(max_tokens=30, temperature=1.0, top_p=0.9, seed=4, prompt_logprobs=2)),
)
REST = tuple(range(6, len(OTHERS) + len(SEARCHES)))
ORDERS = {"searches are older": (0, 4, 1, 2, 5, 3, *REST), "searches are younger": (0, 2, 4, 1, 3, 5, *REST)}


@pytest.mark.parametrize("check_step", [1, 4])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("made", ["llama-grouped", "gpt2"], indirect=True)
def test_beams_stand_firm_while_others_give_way(made: Made, order: tuple[int, ...], check_step: int) -> None:
    """With hardly more pages than the widest search may need, others beside it are preempted, and come again."""
    asked = [*OTHERS, *((search.prompt, search.params) for search in SEARCHES)]
    plan = open_engine(made.path, device=CPU).manifest.plan
    with LLM(made.path, threads=1) as llm:
        alone = [llm.generate([prompt], own)[0] for prompt, own in asked]
        ends = llm.limits.eos_ids
    few = {"page_size": 3, "kv_memory": 44 * page_bytes(plan, 3), "max_num_seqs": 12, "max_batched_tokens": 24}
    with LLM(made.path, threads=1, check_step=check_step, **few) as llm:
        stream = llm.stream([asked[i][0] for i in order], [asked[i][1] for i in order])
        before = beside = 0
        for _ in stream:
            loop, now = llm._loop, llm.metrics()["preemptions"]
            assert loop is not None
            searches = [request for request in loop.scheduler.running if request.group is not None]
            assert not any(request.preemptions for request in searches)
            beside += now - before if searches else 0
            before = now
        assert beside > 1 and llm.metrics()["pages_used"] == 0
        outputs = [output for _, output in sorted(zip(order, stream.outputs(), strict=True), key=lambda pair: pair[0])]
    assert_theirs(outputs[len(OTHERS) :], made, ends)
    assert [output.outputs for output in outputs] == [output.outputs for output in alone], "to the bit"
    assert [output.prompt_logprobs for output in outputs] == [output.prompt_logprobs for output in alone]


@pytest.fixture(scope="module")
def grouped(forge: Forge) -> Path:
    return forge.built("llama-grouped")


@pytest.fixture
def llm(grouped: Path) -> Iterator[LLM]:
    with LLM(grouped, threads=1, page_size=4) as opened:
        yield opened
        assert opened.metrics()["pages_used"] == 0


def most_pages(llm: LLM, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> int:
    """How many pages were held at once, as seen after each step, none of which stands for several."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("allotrope.api.STREAMED_HOLD_S", 0.0)
        return max(llm.metrics()["pages_used"] for _ in llm.stream(prompts, params))


def test_beams_hold_their_prompt_once_and_share_what_they_said_alike(llm: LLM) -> None:
    """After each step: the prompt's ten pages, each full page of output that beams differ in, and the last of each."""
    loop, held = llm._loop, set[int]()
    assert loop is not None
    generation = loop.prepare(None, LONG[:40], SamplingParams(max_tokens=21, temperature=0, beams=4, ignore_eos=True))
    loop.submit(generation)
    loop.step()
    search = generation.request.group
    assert search is not None
    while not generation.ended:
        texts = search.outputs()
        full, filled = divmod(len(texts[0]) - 1, 4)  # the last token has not been computed
        own = sum(len({text[: 4 * (i + 1)] for text in texts}) for i in range(full)) + (4 if filled else 0)
        assert llm.metrics()["pages_used"] == 10 + own
        held.add(own - full - bool(filled))
        loop.step()
    assert len(held) > 3, "they part and come together"


def test_a_search_that_is_left_leaves_nothing(llm: LLM) -> None:
    loop = llm._loop
    assert loop is not None
    generation = loop.prepare(None, LONG, SamplingParams(max_tokens=20, temperature=0, beams=5, ignore_eos=True))
    loop.submit(generation)
    for _ in range(6):
        loop.step()
    assert llm.metrics()["pages_used"] > 11
    loop.cancel(generation)
    loop.drain()
    assert llm.metrics()["pages_used"] == 0 and not loop.busy
    [answer] = generation.output().outputs
    assert (answer.finish_reason, answer.token_ids) == ("abort", ())


DRAWN = SamplingParams(max_tokens=13, temperature=1.1, seed=-3, n=5, logprobs=2, ignore_eos=True)


def bare(answers: Sequence[CompletionOutput]) -> list[CompletionOutput]:
    return [replace(answer, index=0) for answer in answers]


@pytest.mark.parametrize("length", [1, 16, 39])
@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 4},
        {"page_size": 1, "prefix_cache": False, "check_step": 8},
        {"page_size": 3, "max_batched_tokens": 8, "max_num_seqs": 3, "skip_step": 3},
        {"page_size": 16, "prefix_cache": False, "max_batched_tokens": 5},
    ],
)
def test_answers_are_those_of_separate_requests(grouped: Path, options: dict[str, Any], length: int) -> None:
    """Of the seeds that follow one another; one of the five ends early, and its pages are nobody else's."""
    with LLM(grouped, threads=1, **options) as llm:
        [free] = llm.generate([LONG[:length]], DRAWN)
        stop = free.outputs[2].token_ids[4]
        params = replace(DRAWN, stop_token_ids=(stop,))
        [output] = llm.generate([LONG[:length]], params)
        assert len({answer.token_ids for answer in output.outputs}) == 5
        assert len({len(answer.token_ids) for answer in output.outputs}) > 1
    with LLM(grouped, threads=1, prefix_cache=False) as plain:
        for i, answer in enumerate(output.outputs):
            [single] = plain.generate([LONG[:length]], replace(params, n=1, seed=-3 + i))
            assert list(single.outputs) == bare([answer]), "to the bit"


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_answers_share_their_prompts_pages_and_compute_it_once(grouped: Path, prefix_cache: bool) -> None:
    """39 tokens in pages of 4: nine pages are everyone's; the tenth, not full, and what follows are each one's own."""
    prompt, params = LONG[:39], replace(DRAWN, logprobs=None)
    with LLM(grouped, threads=1, page_size=4, prefix_cache=prefix_cache) as llm:
        assert most_pages(llm, [prompt], params) == 9 + 5 * 4
        counted = llm.metrics()
        assert (counted["prompt_tokens"], counted["output_tokens"]) == (39, 5 * 13)
        assert counted["computed_tokens"] == 39 + 4 + 5 * 12
        assert counted["pages_used"] == 0
    with LLM(grouped, threads=1, page_size=4, prefix_cache=False) as llm:
        singles = [replace(params, n=1, seed=i) for i in range(5)]
        assert most_pages(llm, [prompt] * 5, singles) == 5 * 13
        assert llm.metrics()["computed_tokens"] == 5 * (39 + 12)


def test_answers_that_give_way_are_drawn_alike(grouped: Path) -> None:
    """Pages for two and a half of five: who is preempted shares nothing any more, and still says the same."""
    plan = open_engine(grouped, device=CPU).manifest.plan
    with LLM(grouped, threads=1) as llm:
        [expected] = llm.generate([LONG[:9]], replace(DRAWN, max_tokens=30))
    with LLM(grouped, threads=1, page_size=4, kv_memory=25 * page_bytes(plan, 4), prefix_cache=False) as llm:
        [output] = llm.generate([LONG[:9]], replace(DRAWN, max_tokens=30))
        assert llm.metrics()["preemptions"] > 0
    assert output.outputs == expected.outputs
