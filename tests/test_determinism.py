"""A request's bits are its own: engines as the builder makes them, alone and in any company, slot and chunking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.ops import registry
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.request import Limits, Request, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from tests.verifying import CPU, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, LONGEST, NEW = 32, 24, 4
EVERYONE = list(range(COUNT))
# who; slots; tokens of a step; tokens of a page
COMPANIES = (
    ([3, 4], 2, 64, 4),
    (EVERYONE[::-1][:4], 4, 1, 4),
    (EVERYONE, 32, 2000, 16),
    (EVERYONE[::-1], 32, 37, 4),
    (EVERYONE, 5, 9, 8),
)


def given(vocab: int, limits: Limits) -> list[Request]:
    random = np.random.default_rng(3)
    prompts = [random.integers(0, vocab, int(random.integers(1, LONGEST))).tolist() for _ in EVERYONE]
    params = [
        SamplingParams(max_tokens=NEW, temperature=0.0 if i % 2 else 1.3, top_k=40, top_p=0.95, seed=i, logprobs=i % 4)
        for i in EVERYONE
    ]
    return [new_request(i, prompts[i], params[i], limits) for i in EVERYONE]


def answered(path: Path, which: list[int], slots: int, budget: int, page_size: int) -> dict[int, Any]:
    """Tokens, the bits of their log-probabilities, and candidates."""
    engine = open_engine(path, device=CPU)
    plan = engine.manifest.plan
    executor = EagerExecutor(
        engine,
        device=CPU,
        pages=64 * COUNT // page_size,
        page_size=page_size,
        max_tokens=64,
        max_requests=slots,
        threads=1,
        poison=True,
    )
    scheduler = Scheduler(executor.pages, page_size, slots, budget, plan.max_len)
    requests = given(plan.vocab, Limits(plan.vocab, plan.max_len))
    for i in which:
        scheduler.submit(requests[i])
    while (step := scheduler.plan_step()) is not None:
        scheduler.commit(executor.run(step))
    executor.close()
    return {
        i: (requests[i].output, np.array(requests[i].logprobs, np.float32).tobytes(), requests[i].candidates)
        for i in which
    }


def assert_own_bits(path: Path) -> None:
    alone = answered(path, EVERYONE, 1, 64, 4)  # a single slot: one after the other
    assert len({tuple(tokens) for tokens, _, _ in alone.values()}) > COUNT // 2
    for company in COMPANIES:
        assert answered(path, *company) == {i: alone[i] for i in company[0]}, company[1:]


@pytest.mark.parametrize(
    ("kind", "tune", "dtype"),
    [
        ("llama-grouped", "fast", "fp32"),
        ("llama-grouped", "fast", "bf16"),
        ("gpt2", "fast", "fp32"),
        ("gpt2", "off", "fp32"),
        ("opt-350m", "fast", "bf16"),
        ("opt-350m", "off", "bf16"),
    ],
)
def test_tiny_models_as_built(tmp_path: Path, kind: str, tune: str, dtype: str) -> None:
    source = checkpoint(kind, tmp_path / "c")
    built = build(str(source), tmp_path / "e", device="cpu", dtype=dtype, tune=tune, threads=1)
    assert built.manifest.evidence["batch_variance"]["calls_without_row_class"] == []
    assert_own_bits(built.path)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_trained_model_as_built(assets: Path, tmp_path: Path, dtype: str) -> None:
    assert_own_bits(build(str(assets / "stories260K"), tmp_path / "e", device="cpu", dtype=dtype, threads=1).path)


def test_giving_up_row_classes_is_seen_in_the_bits(tmp_path: Path) -> None:
    """The test above can fail: torch's own matrix product over all rows changes a row's bits with the others."""
    source = checkpoint("llama-grouped", tmp_path / "c")
    tiles = tuple(f"linear/{t.name}" for t in registry.tactics("linear") if t.name not in ("torch_mm", "torch_mm_cols"))
    options: dict[str, Any] = {"without": tiles, "allow_batch_variance": True}
    built = build(str(source), tmp_path / "e", device="cpu", dtype="fp32", tune="off", threads=1, **options)
    assert built.manifest.evidence["batch_variance"]["calls_without_row_class"]
    with pytest.raises(AssertionError):
        assert_own_bits(built.path)
