"""Kernels that an engine brings: kept as JSON, read strictly, made only while building."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from allotrope.errors import EngineError
from allotrope.hw.device import Device
from allotrope.ops import kernels, registry
from allotrope.ops.contract import Problem
from allotrope.ops.kernels import ROWS, Kernel

GPU = Device("cuda", "test", "sm_90", 132, 2**37)
KERNEL = Kernel("triton_norm_0", b"\x7fELF\x00\xff", 32, 8, "OOiiO", ("x", "normed", ROWS, 1024, None), 1)
PROBLEM = Problem("layernorm", {"rows": 3, "width": 1024}, {"eps": 1e-5}, "fp16", frozenset({"weight", "bias"}))


@pytest.fixture(autouse=True)
def _nobody_knows_any(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "_KNOWN", {})
    monkeypatch.setattr("torch._C._StaticCudaLauncher", object(), raising=False)
    yield


def test_it_comes_back_from_json() -> None:
    assert Kernel.from_json(json.loads(json.dumps(KERNEL.to_json()))) == KERNEL


@pytest.mark.parametrize(
    "change",
    [
        {"code": "not base64!"},
        {"code": ""},
        {"warps": 0},
        {"rows": 0},
        {"shared": -1},
        {"warps": 8.0},
        {"types": "OOi"},
        {"args": ["x", "normed", ROWS, 1024, 1.5]},
        {"args": ["x", "normed", ROWS, 1024, ""]},
        {"name": "a b"},
        {"extra": 1},
    ],
    ids=str,
)
def test_what_is_no_kernel_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="kernel 'k' has the wrong form"):
        kernels.install({"k": {**KERNEL.to_json(), **change}})
    with pytest.raises(EngineError, match="wrong form"):
        kernels.install({"k": "nonsense"})


def test_a_norm_has_one_where_the_engine_brings_it_and_while_building() -> None:
    tactic: Any = registry.tactic("layernorm", "inductor")
    assert tactic.why_not(PROBLEM, GPU) == "the engine brings no kernel for it"
    asked = []

    def maker(key: str, problem: Problem) -> Kernel:
        asked.append((key, problem))
        return KERNEL

    with kernels.made_by(maker):
        assert tactic.why_not(PROBLEM, GPU) is None and tactic.why_not(replace(PROBLEM), GPU) is None
    assert asked == [("layernorm/inductor layer fp16 1024 1e-05 bias weight", PROBLEM)]
    assert tactic.why_not(PROBLEM, GPU) is None
    assert kernels.known(tactic.key(PROBLEM)) is KERNEL
    other = replace(PROBLEM, present=frozenset({"weight"}))
    assert tactic.why_not(other, GPU) == "the engine brings no kernel for it"
    kernels.install({tactic.key(other): KERNEL.to_json()})
    assert tactic.why_not(other, GPU) is None


def test_what_cannot_be_compiled_is_a_refusal_in_words() -> None:
    def maker(key: str, problem: Problem) -> Kernel:
        raise RuntimeError("it became 2 kernels,\n not one")

    tactic = registry.tactic("layernorm", "inductor")
    with kernels.made_by(maker):
        reason = tactic.why_not(PROBLEM, GPU)
    assert reason == "torch could not compile it: RuntimeError: it became 2 kernels, not one"
    narrow = replace(PROBLEM, axes={"rows": 3, "width": 20})
    assert "multiple of 8" in str(tactic.why_not(narrow, GPU))
    heads = Problem("rmsnorm", {"rows": 3, "width": 64}, {"eps": 1e-5, "heads": 4}, "fp16")
    assert "not for heads" in str(registry.tactic("rmsnorm", "inductor").why_not(heads, GPU))


def test_more_than_its_32_bits_count_is_refused() -> None:
    """An engine opened for a million tokens a step says so instead of writing elsewhere."""
    tactic: Any = registry.tactic("layernorm", "inductor")
    kernels.install({tactic.key(PROBLEM): KERNEL.to_json()})
    most = replace(PROBLEM, axes={"rows": 2**21, "width": 1024})
    assert tactic.why_not(most, GPU) is None
    more = replace(PROBLEM, axes={"rows": 2**21 + 1, "width": 1024})
    assert tactic.why_not(more, GPU) == "it counts in 32 bits, and 2097153 rows of 1024 are more"


def test_each_gpu_loads_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    loaded: list[int] = []
    launched: list[tuple[int, int]] = []  # which, over how many programs

    class Launcher:
        def _load_kernel(self, path: str, name: str, shared: int, device: int) -> tuple[int, int, int]:
            loaded.append(device)
            return 100 + device, 0, 0

        def _launch_kernel(self, which: int, grid: int, *rest: Any) -> None:
            launched.append((which, grid))

    on = [0]
    monkeypatch.setattr(kernels, "_LOADED", {})
    monkeypatch.setattr("torch._C._StaticCudaLauncher", Launcher(), raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: on[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 0}))
    kernels.install({"k": replace(KERNEL, rows=4).to_json()})
    for on[0] in (0, 1, 0):
        kernels.launch("k", {"x": None, "normed": None}, 9)
    assert loaded == [0, 1] and launched == [(100, 3), (101, 3), (100, 3)]


@pytest.mark.parametrize("op", ["layernorm", "rmsnorm", "add_norm"])
def test_the_code_that_is_compiled_computes_the_norm(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as it is, on the CPU, over the tensors that it is compiled with."""
    import torch

    randn = torch.randn

    def here(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        return randn(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "randn", here)
    params = {"eps": 1e-5} | ({"norm": "rms"} if op == "add_norm" else {"heads": 1} if op == "rmsnorm" else {})
    problem = Problem(op, {"rows": 3, "width": 64}, params, "fp32", frozenset({"weight"}))
    tactic: Any = registry.tactic(op, "inductor")
    tensors = tactic.samples(problem, 5)
    assert tuple(tensors) == tactic.samples_of(problem)
    given = {name: value.clone() for name, value in tensors.items()}
    expected = registry.contract(op).reference(given, params)
    tactic.code(problem)(*tensors.values())
    torch.testing.assert_close(tensors["normed"], expected["normed" if op == "add_norm" else "out"])
    if op == "add_norm":
        assert torch.equal(tensors["residual"], expected["out"])
