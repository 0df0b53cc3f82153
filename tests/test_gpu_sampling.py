"""On a GPU: sampling as its reference defines it, inside a captured graph too, and steps launched ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from allotrope.hw import detect
from allotrope.hw.device import Device
from allotrope.models.lower import lower
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.philox import UNIFORM_BITS, uniform_bits
from allotrope.ops.sample import ADJUSTMENTS, weight_bits
from allotrope.ops.sample.filters import filter_all
from allotrope.ops.sample.scores import score
from allotrope.ops.sample.sums import padded
from allotrope.ops.sample.uniforms import uniforms
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.step import LAST_DRAWN
from tests.engines import LLAMA, MemoryEngine, random_weights
from tests.test_eager_reports import PAGE, PROMPT, Row, step_of, truth

pytestmark = pytest.mark.gpu
DTYPES = ("fp16", "bf16", "fp32")
CONTRACT = registry.contract("sample")
TACTIC = registry.tactic("sample", "torch_sample")


@pytest.fixture(scope="module")
def gpu() -> Device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return detect.detect("cuda")


def problem_of(rows: int, vocab: int, dtype: str, adjustments: int | None = 64) -> Problem:
    axes = {"rows": rows, "logits": min(rows, 16), "vocab": vocab}
    if adjustments is None:
        return Problem("sample", axes, {}, dtype)
    return Problem("sample", axes | {"adjustments": adjustments}, {}, dtype, frozenset(ADJUSTMENTS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adjustments", [None, 0, 500])
@pytest.mark.parametrize("vocab", [1, 513, 50_257])
def test_sampling_is_its_reference(vocab: int, adjustments: int | None, dtype: str, gpu: Device) -> None:
    for rows in (1, 40):
        posed = problem_of(rows, vocab, dtype, None if vocab == 1 else adjustments)
        assert check.check(TACTIC, posed, gpu, seed=rows).reason is None
    assert check.check_rows(TACTIC, problem_of(1, vocab, dtype, None if vocab == 1 else adjustments), gpu) is None


@pytest.mark.parametrize("params", [{}, {"filtered": False}, {"greedy": True}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_graph_samples_alike(params: dict[str, Any], dtype: str, gpu: Device) -> None:
    """Captured with some inputs, replayed with others: nothing is asked of the device, no shape hangs on values."""
    posed = problem_of(9, 32_000, dtype)
    static = moved(posed, 0)
    out, space = outs(9), torch.empty(TACTIC.workspace(posed, gpu), dtype=torch.uint8, device="cuda")
    TACTIC.run(out, static, params, space)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        TACTIC.run(out, static, params, space)
    for seed in range(1, 5):
        fresh, expected = moved(posed, seed), outs(9)
        for name, value in fresh.items():
            static[name].copy_(value)
        space.fill_(0xFF)
        graph.replay()
        TACTIC.run(expected, fresh, params, torch.empty_like(space))
        assert torch.equal(out["tokens"], expected["tokens"])
        assert torch.equal(out["logprobs"].view(torch.int32), expected["logprobs"].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_of_either_sign_rank_by_index(dtype: torch.dtype, gpu: Device) -> None:
    """The lower half of the zeros stays, whatever their signs: a GPU's sort must take them for equal, too."""
    logits = torch.zeros(1, 600, dtype=dtype, device="cuda")
    logits[:, ::3] = -0.0
    weights = torch.ones(1, 600, dtype=torch.float64, device="cuda") * 2.0 ** weight_bits(600)
    how = {"top_k": torch.tensor([300]), "top_p": torch.ones(1), "min_p": torch.zeros(1)}
    ranked = torch.empty(1, padded(600), dtype=torch.float64, device="cuda")
    filter_all(logits, weights, ranked, {name: value.to("cuda") for name, value in how.items()})
    assert weights[0, :300].all() and not weights[0, 300:].any()


def moved(posed: Problem, seed: int) -> dict[str, torch.Tensor]:
    ins = check.rounded(CONTRACT, posed, CONTRACT.make_inputs(posed, seed))
    return {name: value.to("cuda") for name, value in ins.items()}


def outs(rows: int) -> Mapping[str, torch.Tensor]:
    tokens = torch.zeros(rows, 1, dtype=torch.int64, device="cuda")
    return {"tokens": tokens, "logprobs": torch.zeros(rows, 1, device="cuda")}


def test_the_uniforms_are_philox(gpu: Device) -> None:
    seeds = torch.randint(-(2**62), 2**62, (999,), device="cuda")
    positions = torch.randint(2**40, (999,), device="cuda")
    assert torch.equal(uniforms(seeds, positions)[:, 0], uniform_bits(seeds, positions).double() / 2**UNIFORM_BITS)


def test_the_bits_of_a_score_are_its_rows_own(gpu: Device) -> None:
    logits = torch.randn(600, 50_257, device="cuda") * 3
    rows, given = torch.arange(600, device="cuda"), torch.randint(50_257, (600,), device="cuda")
    whole = score(logits, rows, given, 20)
    for i in (0, 1, 299, 333, 599):
        one = score(logits, rows[i : i + 1], given[i : i + 1], 5)
        assert torch.equal(one.given.view(torch.int32), whole.given[i : i + 1].view(torch.int32))
        assert torch.equal(one.likeliest[0], whole.likeliest[i, :5])
        assert torch.equal(one.values[0].view(torch.int32), whole.values[i, :5].contiguous().view(torch.int32))


def test_steps_launched_ahead(gpu: Device) -> None:
    """A step's results outlive the next ones, and its tokens never leave the device in between."""
    plan = lower(LLAMA)  # references everywhere but for what is tested
    sampling = replace(plan.calls[-1], tactics=((None, TACTIC.name),))
    engine = MemoryEngine(replace(plan, calls=(*plan.calls[:-1], sampling)), random_weights(LLAMA))
    runner = EagerExecutor(engine, device=gpu, pages=99, page_size=PAGE, max_tokens=32, max_requests=2)
    waiting = [runner.launch(step_of([Row(0, PROMPT, candidates=2), Row(1, PROMPT[::-1])]))]
    for i in range(8):
        at = len(PROMPT) + i
        waiting.append(runner.launch(step_of([Row(0, [LAST_DRAWN], at, candidates=2), Row(1, [LAST_DRAWN], at)])))
    outputs = [pending.wait() for pending in waiting]
    assert all(pending.ready for pending in waiting)
    for row, prompt in enumerate((PROMPT, PROMPT[::-1])):
        drawn = [int(out.tokens[row]) for out in outputs]
        assert drawn == truth([*prompt, *drawn[:-1]])[len(prompt) - 1 :].argmax(-1).tolist()
    assert all(out.candidates[0][0][0] == out.tokens[0] and len(out.candidates[0]) == 2 for out in outputs)
    assert all(out.busy_s > 0 and out.idle_s >= 0 for out in outputs)
    runner.close()
