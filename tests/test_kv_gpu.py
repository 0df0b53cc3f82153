"""Narrow keys and values on a GPU: the CPU's codes bit for bit, every attention tactic over them, and in graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.models.lower import lower
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.kv_codes import coded, decoded
from allotrope.ops.kv_rows import NARROW, row_width
from allotrope.quant.cache import with_cache
from tests.engines import LLAMA, MemoryEngine, random_weights
from tests.test_graph import Traffic, compare

pytestmark = pytest.mark.gpu
by_form = pytest.mark.parametrize("form", NARROW)
TACTICS = [tactic.name for tactic in registry.tactics("attention")]


@pytest.fixture(scope="module")
def gpu() -> Device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return detect("cuda")


@by_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_codes_and_what_they_mean_are_the_cpus(form: str, dtype: torch.dtype, gpu: Device) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 5 * 80, generator=random) * 10 ** (torch.rand(4000, 1, generator=random) * 8 - 5)
    values[7, 3], values[9] = torch.nan, 0
    rows = coded(values.to(dtype), 5, form)
    there = coded(values.to(dtype).cuda(), 5, form)
    assert torch.equal(there.cpu(), rows)
    meant = decoded(there, 5, 80, form, dtype).cpu()
    expected = decoded(rows, 5, 80, form, dtype)
    lost = 1 if form == "fp16" else 80  # where a head has one scale, it takes all of the head's values with it
    assert torch.equal(meant.isnan(), expected.isnan()) and expected.isnan().sum() == lost
    assert torch.equal(meant.nan_to_num(0), expected.nan_to_num(0))  # a NaN's other bits are each device's own


def posed(form: str, rows: int, requests: int, context: int, window: int, dtype: str) -> Problem:
    params = {"heads": 8, "kv_heads": 2, "head_dim": 64, "scale": 0.125, "window": window, "kv": form}
    axes = {"rows": rows, "requests": requests, "context": context, "page_size": 16, "width": 512}
    return Problem("attention", {**axes, "cache_width": row_width(form, 2, 64)}, params, dtype)


@by_form
@pytest.mark.parametrize("name", TACTICS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_tactic_reads_it_right_and_keeps_its_row_class(form: str, name: str, dtype: str, gpu: Device) -> None:
    tactic, tried = registry.tactic("attention", name), 0
    for rows, requests, context, window in ((1, 1, 300, 0), (6, 6, 200, 0), (90, 3, 70, 37), (130, 1, 130, 0)):
        problem = posed(form, rows, requests, context, window, dtype)
        if tactic.why_not(problem, gpu) is None:
            tried += 1
            assert check.check(tactic, problem, gpu, seed=rows).reason is None
    problem = posed(form, 1, 1, 300, 0, dtype)
    if not tried:
        pytest.skip(str(tactic.why_not(problem, gpu)))
    if tactic.row_class(problem, gpu) is not None:
        assert check.check_rows(tactic, problem, gpu, seed=3) is None


@by_form
@pytest.mark.parametrize(("tactic", "dtype"), [("torch_planned4", "fp32"), ("torch_flash", "bf16")])
def test_graphs_hold_it(form: str, tactic: str, dtype: str, gpu: Device) -> None:
    plan = with_cache(lower(LLAMA, dtype), form)

    def chosen(call: Any) -> Any:
        name = tactic if call.op == "attention" else registry.tactics(call.op)[0].name
        return replace(call, tactics=((None, name),))

    plan = replace(plan, calls=tuple(chosen(call) for call in plan.calls))
    engine = MemoryEngine(plan, random_weights(LLAMA, dtype=dtype))
    compare(engine, plan, list(Traffic(LLAMA.vocab, 40, seed=2).steps(40)), device=gpu, poison=False)
