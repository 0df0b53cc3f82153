"""The numerics policy: healthy tactics pass under any seed, planted mistakes do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "test", "any", 1, 1 << 30)
DTYPES = ("fp32", "fp16", "bf16")
WEIGHTS = {"weight": "rows", "bias": "rows"}
Run = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Scalar], Tensor | None], None]


def linear(dtype: str = "fp32", rows: int = 7, into: int = 48, out: int = 48) -> Problem:
    return Problem("linear", {"rows": rows, "in": into, "out": out}, {}, dtype, frozenset({"bias"}))


def layernorm(dtype: str = "fp32", eps: float = 1e-5) -> Problem:
    axes = {"rows": 9, "width": 65}
    return Problem("layernorm", axes, {"eps": eps}, dtype, frozenset({"weight", "bias"}))


def tactic(op: str, run: Run, scratch: int = 0) -> FunctionTactic:
    weights = WEIGHTS if op in ("linear", "layernorm") else {"table": "rows"} if op == "embed" else {}
    return FunctionTactic(op, "torch_planted", run, weights, scratch=lambda problem, device: scratch)


def healthy_linear(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
    out["out"].copy_(F.linear(ins["x"], ins["weight"], ins["bias"]))


# --- the measure ---------------------------------------------------------------------------------------


def test_compare_by_hand() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    stats = check.compare(torch.tensor([[3.0, 4.5], [0.0, -1.0]]), truth)
    assert (stats.max_abs, stats.mean_abs, stats.median_abs) == (1.0, 0.375, 0.0)
    assert stats.max_rel_rms == pytest.approx(1.0 / 2.5)
    assert stats.rms_rel_rms == pytest.approx(math.sqrt(1.25 / 4) / 2.5)
    assert stats.peak == pytest.approx(4.0 / 2.5)


def test_compare_what_is_not_finite() -> None:
    truth = torch.tensor([1.0, math.inf, math.nan, -math.inf])
    assert check.compare(truth.clone(), truth).max_abs == 0
    for wrong in (math.nan, math.inf, -math.inf):
        assert not check.compare(torch.tensor([wrong, math.inf, math.nan, -math.inf]), truth).finite
    assert not check.compare(torch.tensor([1.0, -math.inf, math.nan, -math.inf]), truth).finite
    assert check.compare(torch.zeros(0, 3), torch.zeros(0, 3)).max_abs == 0
    assert check.compare(torch.full((4,), 0.5), torch.zeros(4)).max_rel_rms == 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_is_twice_the_floor_and_a_little(dtype: str) -> None:
    truth = torch.ones(64, dtype=torch.float64)
    floor = check.compare(truth + 1e-2, truth)
    assert check.within(check.compare(truth + 2e-2, truth), floor, dtype) is None
    beyond = 2e-2 + 1.01 * check.tiny(dtype)
    sentence = check.within(check.compare(truth + beyond, truth), floor, dtype)
    assert sentence is not None and "RMS error" in sentence and "exceeds" in sentence
    lone = truth.clone()
    lone[3] += beyond  # one element: small in RMS, seen in the maximum
    sentence = check.within(check.compare(lone, truth), floor, dtype)
    assert sentence is not None and "maximum error" in sentence
    lone[3] = math.nan
    assert "NaN" in (check.within(check.compare(lone, truth), floor, dtype) or "")


# --- healthy tactics are never accused -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", [linear(), layernorm()], ids=lambda problem: problem.op)
def test_healthy_under_many_seeds(problem: Problem, dtype: str) -> None:
    chosen = registry.tactics(problem.op)[0]
    for seed in range(250):
        result = check.check(chosen, replace(problem, dtype=dtype), CPU, seed)
        assert result.ok, f"seed {seed}: {result.reason}"


# --- planted mistakes in arithmetic --------------------------------------------------------------------


def wrong_linear(kind: str) -> FunctionTactic:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        x, weight, bias = ins["x"], ins["weight"], ins["bias"]
        if kind == "transposed":
            out["out"].copy_(F.linear(x, weight.t(), bias))
        elif kind == "no bias":
            out["out"].copy_(F.linear(x, weight))
        elif kind == "bias off":
            out["out"].copy_(F.linear(x, weight, bias * 1.01))
        elif kind == "one weight row twice":
            out["out"].copy_(F.linear(x, torch.cat([weight[:-1], weight[:1]]), bias))
        elif kind == "last input forgotten":
            out["out"].copy_(F.linear(x[:, :-1], weight[:, :-1], bias))

    return tactic("linear", run)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["transposed", "no bias", "one weight row twice", "last input forgotten"])
def test_wrong_linear_is_refused(kind: str, dtype: str, seed: int) -> None:
    result = check.check(wrong_linear(kind), linear(dtype), CPU, seed)
    assert not result.ok
    assert "exceeds" in (result.reason or "")
    assert result.max_error > 2 * result.e0_max


def test_slightly_wrong_bias_is_refused_in_fp32() -> None:
    assert not check.check(wrong_linear("bias off"), linear(), CPU, 0).ok


def test_fp16_arithmetic_is_refused_in_fp32() -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        out["out"].copy_(F.linear(ins["x"].half(), ins["weight"].half(), ins["bias"].half()))

    assert not check.check(tactic("linear", run), linear(), CPU, 0).ok


@pytest.mark.parametrize("seed", range(20))
def test_wrong_epsilon_is_refused(seed: int) -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        x = ins["x"]
        out["out"].copy_(F.layer_norm(x, x.shape[-1:], ins["weight"], ins["bias"], 1e-6))

    assert not check.check(tactic("layernorm", run), layernorm(eps=1e-5), CPU, seed).ok


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_wrong_epsilon_is_seen_at_unit_variance(kind: str, seed: int) -> None:
    def norm(x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=eps) if kind == "layer" else F.rms_norm(x, x.shape[-1:], eps=eps)

    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed))
    truth = norm(x.double(), 1e-5)
    floor = check.compare(norm(x, 1e-5), truth)
    assert check.within(floor, floor, "fp32") is None
    assert check.within(check.compare(norm(x, 1e-6), truth), floor, "fp32") is not None


def test_wrong_in_strided_buffers_only_is_refused() -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        x = ins["x"]
        dense = x.as_strided(x.shape, (x.shape[1], 1), x.storage_offset())  # takes the width for the stride
        out["out"].copy_(F.linear(dense, ins["weight"], ins["bias"]))

    case = check.prepare(linear(), CPU, 0)
    assert check.check_case(tactic("linear", run), case, strided=False).ok
    assert not check.check_case(tactic("linear", run), case, strided=True).ok
    assert not check.check(tactic("linear", run), linear(), CPU, 0).ok


# --- poison --------------------------------------------------------------------------------------------


def test_an_unwritten_element_disqualifies() -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        right = F.linear(ins["x"], ins["weight"], ins["bias"])
        keep = torch.ones_like(right, dtype=torch.bool)
        keep[3, 17] = False
        out["out"].copy_(torch.where(keep, right, out["out"]))

    assert check.check(tactic("linear", run), linear(), CPU).reason == "out[3, 17] is NaN or was left unwritten"


def test_nothing_written_disqualifies_even_an_exact_op() -> None:
    problem = Problem("embed", {"rows": 3, "vocab": 5, "width": 4}, {}, "bf16")
    result = check.check(tactic("embed", lambda *args: None), problem, CPU)
    assert not result.ok and "bit for bit" in (result.reason or "")


def test_a_read_beside_the_rows_disqualifies() -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        x = ins["x"]
        wide = x.as_strided((x.shape[0], x.shape[1] + 1), x.stride(), x.storage_offset())
        tail = wide[:, -1:] * 0  # harmless in arithmetic, unless it was poison
        out["out"].copy_(F.linear(x, ins["weight"], ins["bias"]) + tail)

    assert "NaN" in (check.check(tactic("linear", run), linear(), CPU).reason or "")


def test_a_read_of_fresh_workspace_disqualifies() -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: Tensor | None) -> None:
        assert workspace is not None and workspace.data_ptr() % 64 == 0
        out["out"].copy_(F.linear(ins["x"], ins["weight"], ins["bias"]) + workspace.view(torch.float32)[0] * 0)

    assert "NaN" in (check.check(tactic("linear", run, scratch=64), linear(), CPU).reason or "")


@pytest.mark.parametrize(
    ("where", "reason"),
    [("out", "wrote outside out"), ("workspace", "wrote outside its workspace"), ("x", "changed its input x")],
)
def test_writing_where_it_must_not_disqualifies(where: str, reason: str) -> None:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: Tensor | None) -> None:
        assert workspace is not None
        healthy_linear(out, ins, params, workspace)
        if where == "x":
            ins["x"][0, 0] = 1
        else:
            view = out["out"] if where == "out" else workspace
            view.as_strided((1,), (1,), view.storage_offset() - 1).fill_(1)

    assert reason in (check.check(tactic("linear", run, scratch=64), linear(), CPU).reason or "")


def test_a_wrong_bit_of_an_exact_op_disqualifies() -> None:
    problem = Problem("embed", {"rows": 3, "vocab": 5, "width": 4}, {}, "fp32")

    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        out["out"].copy_(ins["table"][ins["ids"]])
        out["out"].view(torch.int32)[1, 2] ^= 1

    assert (check.check(tactic("embed", run), problem, CPU).reason or "").startswith("out[1, 2] is not what it must be")


def test_what_is_not_supported_says_so() -> None:
    refusing = replace(tactic("linear", healthy_linear), refuses=lambda problem, device: "it is Tuesday")
    result = check.check(refusing, linear(), CPU)
    assert not result.ok and result.reason == "it does not support this: it is Tuesday"


def test_guarded_memory() -> None:
    found = poison.guarded((3, 5), torch.float16, "cpu", strided=True)
    assert found.view.isnan().all() and found.view.stride(0) > 5
    assert found.intact()
    found.view.fill_(1)
    assert found.intact()
    found.view.as_strided((1,), (1,), found.view.storage_offset() + 5).fill_(1)  # between two rows
    assert not found.intact()
    dense = poison.guarded((2, 3, 4), torch.float32, "cpu", strided=False)
    assert dense.view.is_contiguous() and dense.view.data_ptr() % 64 == 0
    assert (poison.guarded((4,), torch.int64, "cpu", strided=False).view < -(2**40)).all()


# --- row classes ---------------------------------------------------------------------------------------


def row_bug(kind: str) -> FunctionTactic:
    def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
        x = ins["x"]
        y = (x.double() @ ins["weight"].double().t() + ins["bias"].double()).float()
        if kind == "place":
            y[5:] = torch.nextafter(y[5:], torch.tensor(9e9))
        elif kind == "count" and len(x) >= 64:
            y = torch.nextafter(y, torch.tensor(9e9))
        elif kind == "leak":
            y = y + 0 * x.sum()
        elif kind == "alignment" and x.data_ptr() % 64:
            y = torch.nextafter(y, torch.tensor(9e9))
        out["out"].copy_(y)

    return tactic("linear", run)


def test_a_row_by_itself_has_a_class() -> None:
    assert check.check_rows(row_bug("none"), linear(), CPU) is None


@pytest.mark.parametrize("kind", ["place", "count", "leak", "alignment"])
def test_a_row_that_depends_on_others_has_none(kind: str) -> None:
    sentence = check.check_rows(row_bug(kind), linear(), CPU)
    assert sentence is not None and "other bits" in sentence


def test_members_of_a_class_agree_or_are_found() -> None:
    one, tile = row_bug("none"), registry.tactic("linear", "torch_tile8")
    assert check.check_rows(one, linear(), CPU, among=[row_bug("none")]) is None
    assert check.check_rows(tile, linear(), CPU, among=[one]) is not None


def test_fewer_rows_prove_less() -> None:
    def above(bound: int) -> FunctionTactic:
        def run(out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object) -> None:
            row_bug("none").run(out, ins, {}, None)
            out["out"].add_(len(ins["x"]) > bound)

        return tactic("linear", run)

    assert check.check_rows(above(64), linear(), CPU, most=64) is None
    assert "among 512" in (check.check_rows(above(64), linear(), CPU) or "")
    assert "among 64" in (check.check_rows(above(8), linear(), CPU, most=64) or "")


def test_nothing_compared_proves_nothing() -> None:
    refusing = replace(row_bug("none"), refuses=lambda problem, device: "never")
    assert "too few" in (check.check_rows(refusing, linear(), CPU) or "")


def test_an_op_may_bring_its_own_row_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = registry.contract("linear")
    alone, pair = (
        replace(linear(), axes={**linear().axes, "rows": 1}),
        replace(linear(), axes={**linear().axes, "rows": 2}),
    )

    def row_cases(problem: Problem, seed: int, counts: Sequence[int]) -> list[check.RowCase]:
        ins = contract.make_inputs(pair, seed)
        swapped = {**ins, "x": ins["x"].flip(0)}
        first = {**ins, "x": ins["x"][:1]}
        return [check.RowCase(alone, first, {0: 0}), check.RowCase(pair, swapped, {0: 1, 1: 0})]

    monkeypatch.setattr(registry.reference_module("linear"), "row_cases", row_cases, raising=False)
    assert check.check_rows(row_bug("none"), linear(), CPU) is None

    def second_row_differs(
        out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: object, workspace: object
    ) -> None:
        out["out"].copy_(F.linear(ins["x"], ins["weight"], ins["bias"]))
        out["out"][1:] += 1

    assert "at row 1 among 2" in (check.check_rows(tactic("linear", second_row_differs), linear(), CPU) or "")
