"""The eager executor against a naive model, and the same bits for a request whatever surrounds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.plan import Call, Plan, Weight
from allotrope.build import fuse
from allotrope.errors import EngineError, OutOfMemory
from allotrope.models.lower import lower
from allotrope.models.recipe import Recipe
from allotrope.ops import registry
from allotrope.ops.tactic import REFERENCE
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import WANT_ALL, StepInput
from allotrope.runtime.weights import Weights
from tests.engines import CPU, GPT, LLAMA, VOCAB, MemoryEngine, deterministic, naive, plan_of, random_weights

LIMITS = Limits(VOCAB, 64)
RECIPES = {"llama": LLAMA, "gpt": GPT}
GREEDY = SamplingParams(max_tokens=10, temperature=0)


def executor(engine: MemoryEngine, **options: Any) -> EagerExecutor:
    settings: dict[str, Any] = {"pages": 64, "page_size": 4, "max_tokens": 16, "max_requests": 4, "poison": True}
    return EagerExecutor(engine, device=CPU, threads=1, **(settings | options))


def engine_of(recipe: Recipe, dtype: str = "fp32") -> MemoryEngine:
    return MemoryEngine(plan_of(recipe, dtype), random_weights(recipe, dtype=dtype))


def serve(runner: EagerExecutor, requests: Iterable[Request], *, seqs: int = 4, budget: int = 16) -> None:
    scheduler = Scheduler(runner.pages, runner.page_size, seqs, budget, 64)
    for request in requests:
        scheduler.submit(request)
    while (step := scheduler.plan_step()) is not None:
        scheduler.commit(runner.run(step))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, int(random.integers(1, 30))).tolist() for _ in range(count)]


def one_step(tokens: list[int], want: int, page_size: int = 4) -> StepInput:
    """A whole prompt in one step, on pages 5, 6, …"""
    pages = 5 + np.arange(-(-len(tokens) // page_size), dtype=np.int32)[None]
    one = lambda value, dtype: np.array([value], dtype)  # noqa: E731
    return StepInput(
        slots=one(0, np.int32), starts=np.array([0, len(tokens)], np.int32), first=one(0, np.int32),
        tokens=np.array(tokens, np.int32), pages=pages, want=one(want, np.uint8), sample=one(True, np.bool_),
        prompt_lens=one(len(tokens), np.int32), temperature=one(0, np.float32), top_k=one(0, np.int32),
        top_p=one(1, np.float32), min_p=one(0, np.float32), seeds=one(0, np.int64), candidates=one(3, np.int32),
        page_copies=np.zeros((0, 2), np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_greedy_tokens_and_logprobs_are_the_naive_models(name: str) -> None:
    recipe = RECIPES[name]
    engine, weights = engine_of(recipe), random_weights(recipe)
    requests = [new_request(i, prompt, GREEDY, LIMITS) for i, prompt in enumerate(prompts(6))]
    serve(executor(engine), requests)
    for request in requests:
        logprobs = naive(recipe, weights, request.tokens[:-1]).log_softmax(-1)[request.prompt_len - 1 :]
        assert len(request.output) == 10
        assert request.output == logprobs.argmax(-1).tolist()
        np.testing.assert_allclose(request.logprobs, logprobs.amax(-1).numpy(), atol=2e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_logits_of_every_position(name: str) -> None:
    recipe = RECIPES[name]
    tokens = prompts(1, seed=5)[0] + [7, 8, 9]
    output = executor(engine_of(recipe)).run(one_step(tokens, WANT_ALL))
    expected = naive(recipe, random_weights(recipe), tokens)
    np.testing.assert_allclose(output.logits.numpy(), expected.numpy(), atol=1e-4)
    likeliest = expected[-1].log_softmax(-1).topk(3)
    assert [token for token, _ in output.candidates[0]] == likeliest.indices.tolist()
    np.testing.assert_allclose([value for _, value in output.candidates[0]], likeliest.values, atol=2e-5)
    assert output.tokens[0] == likeliest.indices[0]


def bits(request: Request) -> tuple[list[int], bytes, Any]:
    return request.output, np.array(request.logprobs, np.float32).tobytes(), request.candidates


@pytest.mark.parametrize(("name", "dtype"), [("llama", "fp32"), ("gpt", "fp32"), ("llama", "bf16")])
def test_the_same_bits_whoever_shares_the_batch(name: str, dtype: str) -> None:
    """Alone; among 2 to 32; in other slots and pages; with chunks of every kind; drawn and greedy."""
    engine = engine_of(RECIPES[name], dtype)
    params = [
        SamplingParams(max_tokens=6, temperature=0.0 if i % 2 else 1.3, top_k=40, top_p=0.95, seed=i, logprobs=i % 4)
        for i in range(32)
    ]
    given = prompts(32, seed=3)

    def run(which: list[int], **how: int) -> dict[int, Any]:
        runner = executor(engine, pages=400)
        requests = {i: new_request(i, given[i], params[i], LIMITS) for i in which}
        serve(runner, requests.values(), **how)
        return {i: bits(request) for i, request in requests.items()}

    alone = {i: run([i], budget=64)[i] for i in range(32)}
    assert len({tuple(tokens) for tokens, _, _ in alone.values()}) > 20
    everyone = list(range(32))
    for which, how in (
        ([3, 4], {"seqs": 2, "budget": 64}),
        (everyone[::-1][:8], {"seqs": 8, "budget": 1}),
        (everyone, {"seqs": 32, "budget": 500}),
        (everyone[::-1], {"seqs": 32, "budget": 37}),
        (everyone, {"seqs": 5, "budget": 9}),
    ):
        found = run(which, **how)
        assert found == {i: alone[i] for i in which}


def fused_and_transposed(recipe: Recipe) -> MemoryEngine:
    """An engine whose q, k, v lie in one weight, and whose matrices lie transposed."""
    plan = lower(recipe)
    for fusion in fuse.FUSIONS:
        plan = fuse.apply(plan, fusion) if fuse.why_not(plan, fusion) is None else plan
    read = {slot for call in plan.calls if call.op != "linear" for slot in call.ins.values()}
    weights = {
        name: weight if f"w:{name}" in read else replace(weight, packing="cols")
        for name, weight in plan.weights.items()
    }
    return MemoryEngine(replace(plan, weights=weights), random_weights(recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_another_plan_over_the_same_engine(name: str) -> None:
    """The engine's fused and transposed weights, read by the reference tactic and by the unfused reference plan."""
    recipe = RECIPES[name]
    engine = fused_and_transposed(recipe)
    assert engine.manifest.plan.fusions
    tokens = prompts(1, seed=8)[0]
    expected = naive(recipe, random_weights(recipe), tokens).numpy()
    for plan in (None, lower(recipe)):
        output = executor(engine, plan=plan).run(one_step(tokens, WANT_ALL))
        np.testing.assert_allclose(output.logits.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_are_views_of_the_engines_memory(dtype: str) -> None:
    plan = fuse.apply(lower(LLAMA, dtype), fuse.by_name("qkv"))
    weights = random_weights(LLAMA, dtype=dtype)
    for packing in ("rows", "cols"):
        packed = {name: replace(weight, packing=packing) for name, weight in plan.weights.items()}
        engine = MemoryEngine(replace(plan, weights=packed), weights)
        views = Weights(engine, "cpu")
        for name, weight in plan.weights.items():
            array = engine.array(name)
            for slot, _ in weight.parts:
                part = views.part(slot)
                assert torch.equal(part, weights[slot]) and part.dtype == weights[slot].dtype
                assert array.ctypes.data <= part.data_ptr() < array.ctypes.data + array.nbytes
            assert torch.equal(views.canonical(name), torch.cat([weights[slot] for slot, _ in weight.parts]))


def test_a_weight_in_the_wrong_packing_is_fatal_at_load() -> None:
    plan = lower(LLAMA)
    views = Weights(MemoryEngine(plan, random_weights(LLAMA)), "cpu")
    with pytest.raises(EngineError, match=r"head.weight is packed as 'rows', not 'cols'"):
        views.get("head.weight", plan.weights["head.weight"], "cols")
    with pytest.raises(EngineError, match="no weight holds"):
        views.get("nothing.weight", Weight((("nothing.weight", (2, 2)),)), "rows")


def with_tactic(plan: Plan, op: str, tactic: str) -> Plan:
    return replace(plan, calls=tuple(replace(c, tactics=((None, tactic),)) if c.op == op else c for c in plan.calls))


def test_a_planned_tactic_that_is_missing_is_fatal_at_load() -> None:
    engine = MemoryEngine(with_tactic(lower(LLAMA), "rmsnorm", "torch_gone"), random_weights(LLAMA))
    with pytest.raises(EngineError, match=r"rmsnorm has no tactic 'torch_gone'.*allotrope build"):
        executor(engine)


def test_a_planned_tactic_that_refuses_is_fatal_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(LLAMA)
    embed = type(registry.tactic("embed", engine.manifest.plan.calls[0].tactics[0][1]))
    monkeypatch.setattr(embed, "why_not", lambda self, problem, device: f"it needs {problem.axes['rows']} abacuses")
    message = r"^embed: the planned tactic \S+ cannot run here: it needs 16 abacuses; rebuild"
    with pytest.raises(EngineError, match=message):
        executor(engine)


def test_memory_that_cannot_be_had_is_said_in_words() -> None:
    with pytest.raises(OutOfMemory, match=r"KV pool's pages need 18 PB, [\d.]+ GB are available; lower"):
        executor(engine_of(LLAMA), pages=2**45, poison=False)


def test_a_tap_sees_each_call_and_may_overwrite_its_output() -> None:
    runner = executor(engine_of(LLAMA))
    tokens, seen = [5, 6, 7], list[str]()

    def watch(call: Call, outs: dict[str, Any]) -> None:
        seen.append(call.path)
        assert set(outs) == set(call.outs)

    plain = runner.run(one_step(tokens, WANT_ALL), watch).logits.clone()
    assert seen == [call.path for call in runner.plan.calls]

    def zero(call: Call, outs: dict[str, Any]) -> None:
        if call.path == "blocks.1.mlp.down":
            outs["out"].zero_()

    cut = runner.run(one_step(tokens, WANT_ALL), zero).logits.clone()
    weights = random_weights(LLAMA) | {"blocks.1.mlp.down.weight": torch.zeros(32, 48)}
    np.testing.assert_allclose(cut.numpy(), naive(LLAMA, weights, tokens).numpy(), atol=1e-4)
    assert not torch.allclose(cut, plain)


def test_logits_that_are_not_finite_end_their_request_and_touch_no_other() -> None:
    weights = random_weights(LLAMA)
    given = [[10, 11, 12], [20, 21, 99, 22], [30, 31]]
    bad = weights | {"embed.weight": weights["embed.weight"].clone()}
    bad["embed.weight"][99] = torch.nan
    plan = plan_of(LLAMA)
    found = []
    for each in (weights, bad):
        requests = [new_request(i, prompt, GREEDY, LIMITS) for i, prompt in enumerate(given)]
        serve(executor(MemoryEngine(plan, each)), requests)
        found.append(requests)
    healthy, hurt = found
    assert 99 not in healthy[0].tokens + healthy[2].tokens
    assert hurt[1].finish_reason == "error" and hurt[1].output == [] and "request 1" in str(hurt[1].error)
    for i in (0, 2):
        assert bits(hurt[i]) == bits(healthy[i]) and hurt[i].finish_reason == "length"


def test_pages_are_copied_before_anything_else() -> None:
    runner = executor(engine_of(LLAMA))
    tokens = [5, 6, 7, 8, 9]
    whole = runner.run(one_step([*tokens, 10], WANT_ALL)).logits[-1].clone()
    runner.run(one_step(tokens, WANT_ALL))
    later = replace(
        one_step([10], WANT_ALL),
        first=np.array([5], np.int32),
        prompt_lens=np.array([5], np.int32),
        pages=np.array([[20, 21]], np.int32),
        page_copies=np.array([[5, 20], [6, 21]], np.int32),
    )
    assert torch.equal(runner.run(later).logits[0], whole)


def test_a_step_larger_than_any_before_grows_the_buffers() -> None:
    runner = executor(engine_of(LLAMA), max_tokens=2, max_requests=1)
    small = runner.run(one_step([3, 4], WANT_ALL)).logits.clone()
    large = runner.run(one_step([3, 4, *range(20, 60)], WANT_ALL)).logits
    assert torch.equal(large[:2], small)


def test_resident_weights_are_let_go_on_request() -> None:
    engine = engine_of(LLAMA)
    executor(engine, drop_resident=True).run(one_step([3], WANT_ALL))
    assert engine.forgotten == sum(
        any(s.startswith("w:") for s in call.ins.values()) for call in engine.manifest.plan.calls
    )


def test_the_reference_tactic_serves_the_whole_plan() -> None:
    engine = MemoryEngine(lower(GPT), random_weights(GPT))
    assert {name for call in engine.manifest.plan.calls for _, name in call.tactics} == {REFERENCE}
    request = new_request(1, [4, 5], GREEDY, LIMITS)
    serve(executor(engine), [request])
    expected = naive(GPT, random_weights(GPT), request.tokens[:-1])[1:]
    assert request.output == expected.argmax(-1).tolist()


def test_different_tactics_by_row_count() -> None:
    """Prefill's 5 rows on one tactic, decode's single row on another."""
    plan = deterministic(lower(LLAMA))
    split = replace(
        plan,
        calls=tuple(
            replace(call, tactics=((1, REFERENCE), *call.tactics)) if call.op == "linear" else call
            for call in plan.calls
        ),
    )
    used = set()
    runner = executor(MemoryEngine(split, random_weights(LLAMA)))
    assert runner.program is not None
    for bound in runner.program.calls:
        if bound.call.op == "linear":
            used |= {bound.choice_for(1).tactic.name, bound.choice_for(5).tactic.name}
    assert len(used) == 2 and REFERENCE in used
    request = new_request(1, [4, 5, 6, 7, 8], GREEDY, LIMITS)
    serve(runner, [request])
    assert request.output == naive(LLAMA, random_weights(LLAMA), request.tokens[:-1])[4:].argmax(-1).tolist()


def test_importing_the_runtime_imports_no_torch() -> None:
    modules = ("eager", "weights", "buffers", "step_tensors", "loop", "scheduler", "options")
    code = f"import sys, importlib; [importlib.import_module('allotrope.runtime.' + m) for m in {modules}];"
    code += "import allotrope.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
