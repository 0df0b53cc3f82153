"""The core ops: references against independent formulas, every tactic against its reference, every row class proven."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.activation.pieces import LANES, PIECE
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.tactic import Tactic

DTYPES = ("fp32", "fp16", "bf16")
BOTH = ("weight", "bias")


def problem(
    op: str, axes: Mapping[str, int], dtype: str = "fp32", present: tuple[str, ...] = (), **params: Scalar
) -> Problem:
    return Problem(op, axes, params, dtype, frozenset(present))


def rows(count: int, width: int, **more: int) -> dict[str, int]:
    return {"rows": count, "width": width, **more}


def linear(count: int, into: int, out: int, *present: str) -> Problem:
    return problem("linear", {"rows": count, "in": into, "out": out}, present=present)


KINDS = ("gelu", "gelu_tanh", "relu", "silu")
PROBLEMS = [
    problem("embed", rows(5, 19, vocab=37)),
    problem("embed", rows(1, 64, vocab=1)),
    problem("add_positions", rows(5, 19, size=37), offset=2),
    problem("add_positions", rows(1, 64, size=3), offset=0),
    problem("select_rows", rows(7, 33, tokens=12)),
    problem("select_rows", rows(1, 64, tokens=1)),
    problem("reorder", rows(7, 33)),
    problem("reorder", rows(1, 64)),
    problem("add", rows(7, 33)),
    problem("add", rows(1, 64)),
    *(problem("layernorm", rows(7, 33), present=BOTH[:n], eps=1e-5) for n in (0, 1, 2)),
    problem("layernorm", rows(3, 768), present=("bias",), eps=1e-6),
    problem("layernorm", rows(1, 8), present=BOTH, eps=1e-5),
    problem("rmsnorm", rows(7, 33), present=("weight",), eps=1e-5),
    problem("rmsnorm", rows(1, 64), eps=1e-6, heads=4),
    problem("rmsnorm", rows(3, 765), present=("weight",), eps=1e-6, heads=5),
    *(problem(op, rows(7, 33), kind=kind) for op in ("activation", "gated") for kind in KINDS),
    *(problem(op, rows(1, LANES), kind=kind) for op in ("activation", "gated") for kind in KINDS),
    problem("activation", rows(2, PIECE + 65), kind="gelu"),
    problem("gated", rows(90, 2 * LANES), kind="silu"),
    linear(7, 33, 5, "bias"),
    linear(1, 64, 64),
    linear(9, 172, 130, "bias"),
    linear(3, 130, 172),
    linear(20, 1, 33, "bias"),
    linear(2, 31, 1),
    linear(70, 48, 16),
]


def of(found: Problem, dtype: str) -> Problem:
    return Problem(found.op, found.axes, found.params, dtype, found.present)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    torch.set_num_threads(1)
    return detect(request.param)


def able(found: Problem, device: Device) -> list[Tactic]:
    candidates = (*registry.tactics(found.op), registry.tactic(found.op, "reference"))
    return [tactic for tactic in candidates if tactic.why_not(found, device) is None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("found", PROBLEMS, ids=lambda found: found.key())
def test_every_tactic_is_right(found: Problem, dtype: str, device: Device) -> None:
    tactics = able(of(found, dtype), device)
    assert len(tactics) >= 2
    for tactic in tactics:
        for seed in range(3):
            result = check.check(tactic, of(found, dtype), device, seed)
            assert result.ok, f"{tactic.name}, seed {seed}: {result.reason}"


# --- row classes ---------------------------------------------------------------------------------------

ROWS = [
    problem("embed", rows(1, 19, vocab=37)),
    problem("add_positions", rows(1, 19, size=37), offset=2),
    problem("select_rows", rows(1, 33, tokens=12)),
    problem("reorder", rows(1, 33)),
    problem("add", rows(1, 33)),
    problem("layernorm", rows(1, 65), present=BOTH, eps=1e-5),
    problem("layernorm", rows(1, 768), present=BOTH, eps=1e-5),
    problem("rmsnorm", rows(1, 65), present=("weight",), eps=1e-5),
    problem("rmsnorm", rows(1, 96), present=("weight",), eps=1e-5, heads=6),
    *(problem("activation", rows(1, width), kind=kind) for kind in KINDS for width in (33, 192)),
    problem("gated", rows(1, 33), kind="silu"),
    problem("gated", rows(1, 192), kind="gelu"),
]
# odd and even, and the narrow ones for which MKL has kernels of their own
LINEAR_ROWS = [
    linear(1, 172, 130, "bias"),
    linear(1, 64, 172),
    linear(1, 65, 9, "bias"),
    linear(1, 5, 7),
    linear(1, 24, 5),
    linear(1, 33, 12),
    linear(1, 7, 1, "bias"),
    linear(1, 48, 64, "bias"),
]


def _prove(found: Problem, device: Device) -> int:
    classes = 0
    for tactic in able(found, device):
        if tactic.row_class(found, device) is not None:
            classes += 1
            assert check.check_rows(tactic, found, device) is None, tactic.name
    return classes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("found", ROWS, ids=lambda found: found.key())
def test_row_classes(found: Problem, dtype: str, device: Device) -> None:
    assert _prove(of(found, dtype), device) >= 1, "an op needs a tactic with a row class"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("found", LINEAR_ROWS, ids=lambda found: found.key())
def test_row_classes_of_linear(found: Problem, dtype: str, device: Device) -> None:
    few = dtype == "bf16" and "amx_bf16" in device.features  # where AMX multiplies, large tiles have no class
    assert _prove(of(found, dtype), device) >= (4 if few else 6)


@pytest.mark.parametrize(
    ("name", "dtype"), [("torch_tile8", "fp32"), ("torch_tile64", "fp32"), ("torch_tile32", "bf16")]
)
def test_row_classes_of_linear_over_threads(name: str, dtype: str) -> None:
    torch.set_num_threads(2)
    found = of(linear(1, 172, 130, "bias"), dtype)
    if registry.tactic("linear", name).row_class(found, detect("cpu")) is None:
        pytest.skip("AMX multiplies such tiles, and they have no class")
    assert check.check_rows(registry.tactic("linear", name), found, detect("cpu")) is None


@pytest.mark.parametrize("op", ["activation", "gated"])
def test_pieces_keep_their_bits_over_threads(op: str) -> None:
    torch.set_num_threads(2)
    device = detect("cpu")
    for kind, width in (("gelu", 65), ("gelu_tanh", 192), ("silu", 192)):
        found = problem(op, rows(1, width), kind=kind)
        assert check.check_rows(registry.tactic(op, "torch_pieces"), found, device) is None, kind


def test_what_has_no_row_class_has_a_reason() -> None:
    """torch's own gelu and whole products really do change a row's bits: the classless are classless rightly."""
    torch.set_num_threads(1)
    device = detect("cpu")
    found = problem("activation", rows(1, 33), kind="gelu")
    assert registry.tactic("activation", "torch").row_class(found, device) is None
    assert "other bits" in (check.check_rows(registry.tactic("activation", "torch"), found, device) or "")
    wide = linear(1, 768, 96)
    assert registry.tactic("linear", "torch_mm").row_class(wide, device) is None
    assert "other bits" in (check.check_rows(registry.tactic("linear", "torch_mm"), wide, device) or "")
    assert registry.tactic("linear", "torch_tile8").row_class(wide, device) == "torch_tile8"


def test_no_tactic_claims_what_torch_may_split() -> None:
    device, long = detect("cpu"), problem("layernorm", rows(1, 40_000), eps=1e-5)
    assert registry.tactic("layernorm", "torch_composed").row_class(long, device) is None
    assert registry.tactic("layernorm", "torch").row_class(long, device) == "torch"


# --- what refuses, says why ----------------------------------------------------------------------------


def test_refusals_are_sentences() -> None:
    device = detect("cpu")
    odd = problem("rmsnorm", rows(1, 10), eps=1e-5, heads=3)
    assert registry.tactic("rmsnorm", "torch").why_not(odd, device) == "3 heads do not divide a row of 10"
    unknown = problem("activation", rows(1, 10), kind="swish")
    for name in ("torch", "torch_pieces"):
        assert "no activation 'swish'" in (registry.tactic("activation", name).why_not(unknown, device) or "")
    few = linear(2, 64, 64)
    assert "MKL" in (registry.tactic("linear", "torch_mm_cols").why_not(few, device) or "")
    assert registry.tactic("linear", "torch_mm_cols").why_not(of(few, "bf16"), device) is None


# --- references against formulas of their own ----------------------------------------------------------


def _reference(op: str, ins: Mapping[str, object], **params: Scalar) -> np.ndarray:
    tensors = {name: torch.as_tensor(value) for name, value in ins.items()}
    return registry.contract(op).reference(tensors, params)["out"].numpy()


X = np.array([[0.5, -1.0, 2.0, 3.5], [1e-3, 2e-3, -1e-3, 0.0]])
W = np.array([1.0, -0.5, 2.0, 0.0])


def test_layernorm_reference() -> None:
    mean = X.mean(1, keepdims=True)
    expected = (X - mean) / np.sqrt(((X - mean) ** 2).mean(1, keepdims=True) + 1e-5) * W + 1
    np.testing.assert_allclose(_reference("layernorm", {"x": X, "weight": W, "bias": np.ones(4)}, eps=1e-5), expected)


def test_rmsnorm_reference() -> None:
    expected = X / np.sqrt((X**2).mean(1, keepdims=True) + 1e-5) * W
    np.testing.assert_allclose(_reference("rmsnorm", {"x": X, "weight": W}, eps=1e-5, heads=1), expected)
    halves = [part / np.sqrt((part**2).mean(1, keepdims=True) + 1e-5) * W[:2] for part in (X[:, :2], X[:, 2:])]
    found = _reference("rmsnorm", {"x": X, "weight": W[:2]}, eps=1e-5, heads=2)
    np.testing.assert_allclose(found, np.concatenate(halves, axis=1))


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_activation_references(kind: str) -> None:
    expected = np.vectorize(ACTIVATIONS[kind])(X)
    np.testing.assert_allclose(_reference("activation", {"x": X}, kind=kind), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(_reference("gated", {"gate": X, "up": X * 3}, kind=kind), expected * X * 3, rtol=1e-12)


def test_linear_reference() -> None:
    weight = np.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(_reference("linear", {"x": X, "weight": weight, "bias": W[:3]}), X @ weight.T + W[:3])


def test_moving_references() -> None:
    table = np.arange(20.0).reshape(5, 4)
    assert np.array_equal(_reference("embed", {"ids": [4, 0], "table": table}), table[[4, 0]])
    assert np.array_equal(_reference("select_rows", {"x": table, "index": [3, 3]}), table[[3, 3]])
    assert np.array_equal(_reference("reorder", {"x": table, "order": [2, 0, 3, 1]}), table[:, [2, 0, 3, 1]])
    shifted = _reference("add_positions", {"x": X, "table": table, "positions": [0, 2]}, offset=2)
    assert np.array_equal(shifted, X + table[[2, 4]])
    assert np.array_equal(_reference("add", {"a": X, "b": X}), 2 * X)


# --- inputs and costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("found", PROBLEMS[:12], ids=lambda found: found.key())
def test_inputs_follow_the_seed(found: Problem) -> None:
    contract = registry.contract(found.op)
    first, again, other = (contract.make_inputs(found, seed) for seed in (1, 1, 2))
    assert set(first) == {name for name, operand in contract.ins.items() if not operand.optional} | found.present
    assert all(torch.equal(first[name].nan_to_num(7), again[name].nan_to_num(7)) for name in first)
    floats = [name for name in first if first[name].is_floating_point()]
    assert all(first[name].dtype == torch.float64 for name in floats)
    assert any(not torch.equal(first[name], other[name]) for name in floats)


def test_costs_count_each_byte_once() -> None:
    def cost(found: Problem) -> tuple[float, float]:
        priced = registry.contract(found.op).cost(found)
        return priced.bytes, priced.flops

    assert cost(linear(3, 10, 20, "bias")) == (4 * (200 + 20 + 30 + 60), 3 * (400 + 20))
    assert cost(of(linear(3, 10, 20), "bf16")) == (2 * (200 + 30 + 60), 3 * 400)
    assert cost(problem("embed", rows(3, 10, vocab=1000))) == (3 * (80 + 8), 0)
    assert cost(problem("select_rows", rows(3, 10, tokens=9), "fp16")) == (3 * (40 + 8), 0)
    assert cost(problem("reorder", rows(3, 10), "fp16")) == (3 * 40 + 40, 0)
    assert cost(problem("add", rows(3, 10))) == (360, 30)
    assert cost(problem("add_positions", rows(3, 10, size=99), "fp16", offset=2)) == (3 * (60 + 8), 30)
    assert cost(problem("gated", rows(3, 10), kind="relu")) == (360, 60)
    assert cost(problem("activation", rows(3, 10), kind="relu")) == (240, 30)
    assert cost(problem("layernorm", rows(3, 10), present=BOTH, eps=1e-5)) == (4 * 80, 210)
    assert cost(problem("rmsnorm", rows(3, 10), "bf16", ("weight",), eps=1e-5, heads=2)) == (2 * 65, 120)
