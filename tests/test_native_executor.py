"""The native executor: a plain model's tokens, the same bits in any company and for any number of threads; no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.api import LLM
from allotrope.artifact import plan as plans
from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.cli import main
from allotrope.errors import EngineError, UsageError
from allotrope.models.recipe import Mlp, Recipe
from allotrope.ops import registry
from allotrope.ops.native import NativeTactic, describe
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.request import new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.step import WANT_ALL, WANT_LAST
from tests.engines import GPT, LLAMA, MemoryEngine, naive, plan_of, random_weights, write
from tests.native_kit import native_engine, native_executor, natively, needs_core
from tests.test_builder import LLAMA as CONFIG
from tests.test_builder import shape
from tests.test_eager import GREEDY, LIMITS, bits, one_step, prompts, serve

pytestmark = needs_core
SPOKEN = CONFIG | {"vocab_size": 300}  # bytes, and some more
RECIPES = {"llama": LLAMA, "gpt": GPT}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_tokens_and_logprobs_are_the_naive_models(name: str, threads: int) -> None:
    recipe, weights = RECIPES[name], random_weights(RECIPES[name])
    requests = [new_request(i, prompt, GREEDY, LIMITS) for i, prompt in enumerate(prompts(6))]
    serve(native_executor(native_engine(recipe), threads=threads), requests)
    for request in requests:
        logprobs = naive(recipe, weights, request.tokens[:-1]).log_softmax(-1)[request.prompt_len - 1 :]
        assert request.output == logprobs.argmax(-1).tolist()
        np.testing.assert_allclose(request.logprobs, logprobs.amax(-1).numpy(), atol=2e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_logits_of_every_position(name: str) -> None:
    recipe = RECIPES[name]
    tokens = prompts(1, seed=5)[0] + [7, 8, 9]
    output = native_executor(native_engine(recipe)).run(one_step(tokens, WANT_ALL))
    expected = naive(recipe, random_weights(recipe), tokens)
    np.testing.assert_allclose(output.logits, expected.numpy(), atol=1e-4)
    likeliest = expected[-1].log_softmax(-1).topk(3)
    assert [token for token, _ in output.candidates[0]] == likeliest.indices.tolist()


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_bits_whoever_shares_the_batch_and_the_work(name: str) -> None:
    """Alone; among 2 to 32; in other slots, pages and chunks; preempted; with one thread and two; drawn and greedy."""
    engine, given = native_engine(RECIPES[name]), prompts(32, seed=3)
    params = [
        SamplingParams(max_tokens=6, temperature=0.0 if i % 2 else 1.3, top_k=40, top_p=0.95, seed=i, logprobs=i % 4)
        for i in range(32)
    ]

    def run(which: list[int], threads: int, pages: int = 400, **how: int) -> dict[int, Any]:
        requests = {i: new_request(i, given[i], params[i], LIMITS) for i in which}
        serve(native_executor(engine, pages=pages, max_requests=32, threads=threads), requests.values(), **how)
        return {i: bits(request) for i, request in requests.items()}

    alone: dict[int, Any] = {}
    for i in range(32):
        alone |= run([i], 1)
    everyone = list(range(32))
    for which, how in (
        ([3, 4], {"threads": 2}),
        (everyone[::-1][:4], {"threads": 1, "budget": 1}),
        (everyone, {"threads": 2, "seqs": 32, "budget": 2000}),
        (everyone[::-1], {"threads": 3, "seqs": 32, "budget": 37}),
        (everyone[:8], {"threads": 2, "seqs": 8, "budget": 9, "pages": 24}),  # so few that they take turns
    ):
        assert run(which, **how) == {i: alone[i] for i in which}, how


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    built = build(shape(folder, SPOKEN), folder / "e", device="cpu", tune="off", threads=1, executor="native")
    assert built.manifest.evidence["executor"]["kind"] == "native"
    return built.path


def test_whole_answers_take_few_calls_and_are_those_that_are_streamed(folder: Path) -> None:
    asked = [SamplingParams(max_tokens=40, temperature=t, seed=5, ignore_eos=True) for t in (0.0, 1.0)]
    asked.append(SamplingParams(max_tokens=40, temperature=1.5, seed=2, stop_token_ids=range(40, 80)))
    for params in asked:
        with LLM(folder) as llm:
            launched, launch = [], llm._executor.launch
            llm._executor.launch = lambda step, launch=launch, seen=launched: seen.append(step.repeats) or launch(step)
            whole = llm.generate("A text", params)[0].outputs[0]
            deltas = list(llm.stream("A text", params))
        assert tuple(token for delta in deltas for token in delta.token_ids) == whole.token_ids
        assert "".join(delta.text for delta in deltas) == whole.text and deltas[-1].finish_reason == whole.finish_reason
        assert max(launched) > 1


BLOCKED = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, NoTorch())
from allotrope.cli import main
from allotrope.api import LLM, SamplingParams
llm = LLM(sys.argv[1])
prompts = [[5, 6, 7, 8, 9], [1, 2], [9] * 20]
for params in (
    SamplingParams(max_tokens=9, temperature=0.8, seed=3, logprobs=2, prompt_logprobs=2),
    SamplingParams(max_tokens=9, temperature=0, repetition_penalty=1.2, frequency_penalty=0.3, stop=["zz"]),
    SamplingParams(max_tokens=6, n=3, temperature=1.1, top_p=0.9, top_k=20),
    SamplingParams(max_tokens=6, beams=3, temperature=0),
):
    for output in llm.generate(prompts, params):
        assert output.outputs and all(answer.token_ids for answer in output.outputs)
print(type(llm._executor).__name__)
llm.close()
assert main(["run", sys.argv[1], "hello there", "--max-tokens", "4", "--stream"]) == 0
assert "torch" not in sys.modules
"""


def test_an_engine_runs_without_torch(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("NativeExecutor")


def test_native_and_eager_give_the_same(folder: Path) -> None:
    """The eager executor calls the same kernels one by one: the same tokens, and bits but of what it reports itself."""
    params = SamplingParams(max_tokens=8, temperature=0.9, seed=5, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    found = {}
    for executor in ("native", "eager"):
        with LLM(folder, executor=executor) as llm:
            assert type(llm._executor).__name__.lower().startswith(executor)
            outputs = llm.generate([[5, 6, 7, 8, 9], [1, 2]], params)
            beams = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=6, beams=3, temperature=0))
            found[executor] = [*outputs, *beams]
    for one, other in zip(found["native"], found["eager"], strict=True):
        assert [a.token_ids for a in one.outputs] == [a.token_ids for a in other.outputs]
        for mine, theirs in zip(one.outputs, other.outputs, strict=True):
            for a, b in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
                assert a.keys() == b.keys()
                assert [v.logprob for v in a.values()] == pytest.approx([v.logprob for v in b.values()], abs=1e-6)


def test_what_cannot_be_native_is_said(folder: Path, tmp_path: Path) -> None:
    built = build(shape(tmp_path, SPOKEN), tmp_path / "t", device="cpu", tune="off", threads=1, executor="eager")
    evidence = built.manifest.evidence["executor"]
    assert (evidence["kind"], evidence["not_native"]) == ("eager", "built for the eager executor")
    with pytest.raises(UsageError, match=r"executor is 'native', but .* is computed by torch\S*, which is not"):
        LLM(built.path, executor="native")
    with pytest.raises(UsageError, match="executor is 'native', but the native core cannot compute it all: "):
        build(shape(tmp_path, SPOKEN), tmp_path / "u", device="cpu", tune="off", executor="native", without="native")
    with pytest.raises(EngineError, match="is not the native core's"):
        native_executor(MemoryEngine(plan_of(LLAMA), random_weights(LLAMA)))


def test_the_core_is_the_default_where_it_computes_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the plan is torch's alone: two teams of threads would take the same cores. The build says which, and why."""
    source = shape(tmp_path, SPOKEN)

    def built(*options: str) -> tuple[Any, str]:
        given = ["build", source, "-o", str(tmp_path / "d"), "--device", "cpu", "--tune", "off", "--json", *options]
        assert main(given) == 0
        captured = capsys.readouterr()
        evidence = json.loads(captured.out)["executor"]
        tactics = {name for call in open_engine(tmp_path / "d").manifest.plan.calls for _, name in call.tactics}
        assert any("native" in name for name in tactics) == all("native" in name for name in tactics)
        assert all("native" in name for name in tactics) == (evidence["kind"] == "native")
        return evidence, " ".join(captured.err.split())

    evidence, told = built()
    assert (evidence["kind"], evidence["not_native"]) == ("native", None) and "executor: native " in told
    evidence, told = built("--dtype", "bf16")
    why = "embed: the native core computes in fp32, not in bf16"
    assert (evidence["kind"], evidence["not_native"]) == (
        "eager",
        why,
    ) and f"executor: eager (not native: {why})" in told
    evidence, _ = built("--executor", "eager")
    assert (evidence["wanted"], evidence["kind"]) == ("eager", "eager")
    monkeypatch.setattr(native, "why_not", lambda *kernels: "there is no native core: it is not built")
    evidence, told = built()
    assert (
        evidence["wanted"] == "eager"
        and "executor: eager (not native: there is no native core: it is not built)" in told
    )


def test_an_engine_without_its_core_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find", lambda: native.Found(why="it is not built; with a C++20 compiler: make native"))
    missing = (
        "computed by the native core, and there is none here: it is not built; .*; or rebuild it: allotrope build "
    )
    with pytest.raises(EngineError, match=missing):
        LLM(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such mounts")
def test_a_read_only_engine_runs(folder: Path, tmp_path: Path) -> None:
    """Mounted where nothing can be written, and without a cache that could."""
    script = (
        'mount --bind "$1" "$2" && mount -o remount,ro,bind "$2" && exec "$3" -m allotrope run "$2" hi --max-tokens 2'
    )
    target = tmp_path / "there"
    target.mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(folder), str(target), sys.executable]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("may not mount here")
    environment = os.environ | {"ALLOTROPE_CACHE": "/proc/none"}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_call_in_the_way_leaves_none_native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = replace(registry.tactic("embed", "native"), refuses=lambda problem: "it is too late for this")
    tactics, tabled = registry.tactics, ("embed", "embed_stored", "embed_codes")
    named = {op: tuple(t for t in tactics(op) if not isinstance(t, NativeTactic)) for op in tabled}
    monkeypatch.setattr(registry, "tactics", lambda op: (*named[op], refusing) if op in named else tactics(op))
    built = build(shape(tmp_path, SPOKEN), tmp_path / "e", device="cpu", tune="off", threads=1)
    evidence = built.manifest.evidence
    assert evidence["executor"]["not_native"] == "embed: it is too late for this"
    assert not any("native" in name for call in built.manifest.plan.calls for _, name in call.tactics)
    refused = [r for choice in evidence["choices"] for b in choice["buckets"] for r in b["refused"]]
    assert {"tactic": "native", "reason": "the native core does not compute the whole step"} in refused


def test_room_grows_with_the_step() -> None:
    """More tokens and more logits than were foreseen; the same answer, and the calls' times with it."""
    engine, tokens = native_engine(LLAMA), prompts(1, seed=9)[0] * 2
    step = one_step(tokens[:40], WANT_ALL)
    small = native_executor(engine, max_tokens=2, max_requests=1, timed=True)
    large = native_executor(engine, max_tokens=64, max_requests=64)
    found, expected = small.run(step), large.run(step)
    assert found.logits.tobytes() == expected.logits.tobytes()
    assert found.timed is not None and expected.timed is None
    call_s, prepare_s = found.timed.seconds()
    assert len(call_s) == len(small.plan.calls)
    assert (call_s > 0).all() and 0 < prepare_s + call_s.sum() <= found.busy_s


def test_more_steps_than_the_clock_has_room_for_are_all_timed() -> None:
    """Read after the run and after the executor is closed, each step's own: a long one stands out where it was."""
    runner = native_executor(native_engine(LLAMA), timed=True)
    lengths = [1] * 300
    lengths[70], lengths[280] = 16, 16
    outputs = [runner.run(one_step([5] * length, WANT_LAST)) for length in lengths]
    runner.close()
    read = [output.timed.seconds() for output in outputs if output.timed]
    assert len(read) == 300
    for (call_s, prepare_s), output in zip(read, outputs, strict=True):
        assert (call_s > 0).all() and 0 < prepare_s + call_s.sum() <= output.busy_s
    usual = np.median([call_s.sum() for call_s, _ in read])
    assert min(read[70][0].sum(), read[280][0].sum()) > 2 * usual


def test_an_idle_engine_takes_no_processor() -> None:
    """Its threads spin for a moment after a step, then sleep."""
    runner = native_executor(native_engine(LLAMA), threads=2)
    for _ in range(3):
        runner.run(one_step([1, 2, 3], WANT_ALL))
    time.sleep(0.05)
    spent, began = time.process_time(), time.perf_counter()
    time.sleep(0.4)
    assert time.process_time() - spent < 0.1 * (time.perf_counter() - began)


@pytest.mark.parametrize("recipe", [LLAMA, GPT], ids=["its own head", "tied"])
def test_what_two_calls_read_is_one_weight(recipe: Recipe, tmp_path: Path) -> None:
    """Or the embedding would still be read where the head was."""
    path = write(tmp_path / "e", natively(plan_of(recipe)), random_weights(recipe))
    runner = native_executor(open_engine(path))
    places = [describe(array)[0] for array in runner._held]
    assert len(places) == len(set(places))
    table = next(bound for bound in runner._program.calls if bound.call.op == "embed").choices[0].weights["table"]
    multiplied = [describe(array)[0] for array in runner._multiplied.values()]
    assert (describe(table)[0] in multiplied) == recipe.tied


def test_the_pool_lies_page_by_page() -> None:
    """A page's keys and values of all layers side by side, so that what is used is one place."""
    runner = native_executor(native_engine(LLAMA), pages=7, page_size=4)
    places = sorted(cache.__array_interface__["data"][0] for cache in runner._caches.values())
    [apart] = {cache.strides[0] for cache in runner._caches.values()}
    size = 4 * 4 * 2 * 8  # of a page's keys: four tokens' two heads of eight channels
    assert [place - places[0] for place in places] == [0, size, 2 * size, 3 * size] and apart == 4 * size


def test_a_closed_executor_says_so() -> None:
    runner = native_executor(native_engine(LLAMA))
    runner.close()
    with pytest.raises(UsageError, match="has been closed"):
        runner.launch(one_step([1, 2], WANT_ALL))


def test_steps_of_many_tokens_take_other_pages_and_change_nothing() -> None:
    """What earlier steps left in the buffers is nobody's."""
    recipe = replace(LLAMA, max_len=1024, blocks=(replace(LLAMA.blocks[0], mlp=Mlp(1024, "silu", gated=True)),))
    engine, few, many = native_engine(recipe), [i % 290 for i in range(40)], [i % 290 for i in range(700)]

    def opened() -> NativeExecutor:
        return native_executor(engine, pages=200, max_tokens=1000, threads=2, poison=False)

    def logits(runner: NativeExecutor, tokens: list[int]) -> bytes:
        return runner.run(one_step(tokens, WANT_ALL)).logits.tobytes()

    runner, asked = opened(), (few, many[:300], few, many, many[:300], few)
    alone = {len(tokens): logits(opened(), tokens) for tokens in asked}
    assert [logits(runner, tokens) for tokens in asked] == [alone[len(tokens)] for tokens in asked]


def test_what_every_step_reads_is_read_for_its_rate() -> None:
    """Every matrix that is multiplied with, once; no table of which rows are looked up; and nothing after the end."""
    engine = native_engine(LLAMA)
    runner = native_executor(engine, threads=2)
    slots = {plans.name(call.ins["weight"]) for call in engine.manifest.plan.calls if call.op == "linear"}
    assert len(runner._multiplied) == len(slots)
    assert 1e7 < runner.read_rate() < 1e13
    runner.close()
    with pytest.raises(UsageError, match="has been closed"):
        runner.read_rate()
