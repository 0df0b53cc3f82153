"""Activations in eight bits: what their codes are, to the bit, and every tactic that multiplies them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem
from allotrope.ops.linear_codes import eight
from allotrope.ops.rows import TOPS, Rows, quantise_rows
from allotrope.quant import smooth
from allotrope.quant.formats import Format
from tests.test_linear_codes import able, problem

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = detect("cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return detect(request.param)


def posed(activations: str, plain: Problem, dtype: str = "fp32") -> Problem:
    return dataclasses.replace(plain, params={**plain.params, "activations": activations}, dtype=dtype)


PROBLEMS = [
    posed("int8", problem("int8", 7, 33, 5, None, "bias")),
    posed("int8", problem("int8", 1, 64, 64)),
    posed("int8", problem("int8", 70, 4096, 48, None, "bias")),
    posed("int8", problem("int8", 5, 96, 40, 32)),
    posed("int8", problem("int4", 9, 192, 48, 64, "zeros", "bias")),
    posed("int8", problem("int4", 5, 18, 20)),
    posed("fp8", problem("fp8", 9, 172, 130, None, "bias")),
    posed("fp8", problem("fp8", 70, 1024, 64, None, "bias")),
    posed("fp8", problem("fp8", 2, 31, 1)),
]


def rows_of(seed: int) -> torch.Tensor:
    """Of every size, from fp32's smallest on; rows of ties, of zeros and of what is no number."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 96, generator=source) * 2.0 ** torch.randint(-140, 120, (300, 1), generator=source)
    x[10:20] = (torch.randint(-127, 127, (10, 96), generator=source) + 0.5) * 0.25
    x[10:20, 5] = 127 * 0.25
    x[20], x[21, 3], x[22, 4], x[23, 5] = 0, float("nan"), float("inf"), float("-inf")
    return x


@pytest.mark.parametrize("seed", range(3))
def test_int8_codes_are_by_two_true_divisions(seed: int) -> None:
    """NumPy's fp32, which divides and rounds as IEEE 754 says."""
    x = rows_of(seed)[:21]
    found, wide = quantise_rows(x, "int8"), x.numpy()
    scales = np.maximum(np.abs(wide).max(1, keepdims=True) / np.float32(127), np.finfo(np.float32).tiny)
    assert scales.dtype == np.float32
    assert np.array_equal(found.scales.numpy(), scales)
    assert np.array_equal(found.codes.numpy(), np.rint(wide / scales).astype(np.int8))


def test_fp8_codes_are_the_nearest() -> None:
    """By search among all codes, in fp64, of the quotient in fp32; ties have an even last bit."""
    x = rows_of(0)[:21]
    found = quantise_rows(x, "fp8")
    scales = (x.numpy().__abs__().max(1, keepdims=True) / np.float32(448)).clip(np.finfo(np.float32).tiny)
    assert np.array_equal(found.scales.numpy(), scales)
    wanted = torch.from_numpy(x.numpy() / scales).double().unsqueeze(-1)
    codes = torch.arange(0x7F, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).double()
    far = (wanted.abs() - values).abs() + (codes & 1) * 1e-13  # the odd loses a tie
    assert torch.equal(found.codes.double().abs(), values[far.argmin(-1)])
    assert torch.equal(found.codes.double().sign(), (wanted.sign() * (far.argmin(-1, keepdim=True) > 0)).squeeze(-1))


@pytest.mark.parametrize("form", TOPS)
def test_a_row_that_is_no_number_is_none_as_a_whole(form: str) -> None:
    found = quantise_rows(rows_of(0)[20:25], form)
    assert found.scales.isnan().flatten().tolist() == [False, True, True, True, False]
    assert found.codes[0].double().tolist() == [0.0] * 96


@pytest.mark.parametrize("form", TOPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_precision_in_which_a_row_comes_changes_no_code(form: str, dtype: torch.dtype) -> None:
    x = rows_of(1).to(dtype)
    same, wide = quantise_rows(x, form), quantise_rows(x.double(), form)
    assert torch.equal(poison.bits(same.codes), poison.bits(wide.codes))
    assert torch.equal(poison.bits(same.scales), poison.bits(wide.scales))
    own = smooth.quantise_rows(x, Format("int8") if form == "int8" else Format("fp8"))
    assert torch.equal(poison.bits(own.codes), poison.bits(same.codes))


@pytest.mark.gpu
@pytest.mark.parametrize("form", TOPS)
@pytest.mark.parametrize("seed", range(5))
def test_a_gpu_finds_the_same_codes(form: str, seed: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    x = rows_of(seed)
    here, there = quantise_rows(x, form), quantise_rows(x.cuda(), form)
    sound = here.scales.isfinite().flatten()
    assert torch.equal(poison.bits(here.scales[sound]), poison.bits(there.scales.cpu()[sound]))
    assert torch.equal(poison.bits(here.codes[sound]), poison.bits(there.codes.cpu()[sound]))
    assert torch.equal(sound, there.scales.isfinite().flatten().cpu())


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("asked", PROBLEMS, ids=lambda asked: asked.key())
def test_every_tactic_is_right(asked: Problem, dtype: str, device: Device) -> None:
    asked = dataclasses.replace(asked, dtype=dtype)
    tactics = able(asked, device)
    assert len(tactics) >= 3
    for tactic in tactics:
        for seed in range(3):
            assert check.check(tactic, asked, device, seed).reason is None, tactic.name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("asked", [PROBLEMS[1], PROBLEMS[4], PROBLEMS[7]], ids=lambda asked: asked.key())
def test_a_row_keeps_its_bits_in_any_company(asked: Problem, dtype: str, device: Device) -> None:
    asked = dataclasses.replace(asked, dtype=dtype)
    classed = [tactic for tactic in able(asked, device) if tactic.row_class(asked, device)]
    assert len(classed) >= 3
    for tactic in classed:
        mates = [one for one in classed if one.row_class(asked, device) == tactic.row_class(asked, device)]
        assert check.check_rows(tactic, asked, device, among=mates, most=64) is None


def exact(asked: Problem, device: Device) -> dict[str, dict[str, torch.Tensor]]:
    """What the tactics give whose sums are exact."""
    tactics = [tactic for tactic in able(asked, device) if tactic.row_class(asked, device) == "exact"]
    case = check.prepare(asked, CPU, seed=1)
    return {t.name: poison.run(t, case.contract, asked, device, case.ins).outs for t in tactics}


@pytest.mark.parametrize("asked", [PROBLEMS[1], PROBLEMS[2], PROBLEMS[7]], ids=lambda asked: asked.key())
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_exact_sums_give_the_same_bits_everywhere(asked: Problem, dtype: str, device: Device) -> None:
    """By another route, in whole numbers and fp32's own arithmetic, and by all tactics, on all devices."""
    asked = dataclasses.replace(asked, dtype=dtype)
    ins = check.prepare(asked, CPU, seed=1).ins
    rows = quantise_rows(ins["x"], str(asked.params["activations"]))
    weight = ins["codes"].view(rows.codes.dtype)
    unit = 2**9 if asked.params["format"] == "fp8" else 1  # of e4m3 all values are multiples of 2⁻⁹
    whole = (rows.codes.double() * unit).long() @ (weight.double() * unit).long().T
    sums = torch.from_numpy(whole.numpy().astype(np.float32)) / unit**2
    out = sums * rows.scales * ins["scales"].T + (ins["bias"].float() if "bias" in ins else 0)
    found = exact(asked, device)
    assert "torch_exact" in found
    for outs in found.values():
        assert torch.equal(outs["out"], out.to(ins["x"].dtype))


def test_parts_of_rows_and_of_weights_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (PROBLEMS[2], PROBLEMS[7]):
        before = exact(asked, CPU)
        monkeypatch.setattr(eight, "_BLOCK", 32 * max(asked.axes["in"], asked.axes["out"]))
        monkeypatch.setattr(eight, "_DECODED", 7 * asked.axes["in"])
        monkeypatch.setattr("allotrope.ops.rows._BLOCK", 3 * asked.axes["in"])
        after = exact(asked, CPU)
        for name, outs in before.items():
            assert torch.equal(outs["out"], after[name]["out"]), name
        for tactic in able(asked, CPU):
            assert check.check(tactic, asked, CPU).reason is None, tactic.name
        monkeypatch.undo()


def test_the_longest_sums_are_exact() -> None:
    """All codes at their ends: as large as int32 and fp64 must hold."""
    asked = posed("int8", problem("int8", 3, 132096, 16))
    case = check.prepare(asked, CPU, seed=0)
    ins = {**case.ins, "x": torch.full((3, 132096), -2.0), "codes": torch.full((16, 132096), 128, dtype=torch.uint8)}
    ins["scales"] = torch.ones(16, 1)
    for tactic in able(asked, CPU):
        if tactic.row_class(asked, CPU) == "exact":
            found = poison.run(tactic, case.contract, asked, CPU, ins).outs["out"]
            scale = torch.tensor(2.0) / 127
            assert torch.equal(found, torch.full((3, 16), float(torch.tensor(float(132096 * 127 * 128)) * scale)))


def wrong_rows(kind: str) -> object:
    def quantised(values: torch.Tensor, form: str) -> Rows:
        right, top, wide = quantise_rows(values, form), TOPS[form], values.float()
        if kind == "scale a bit less":
            scales = torch.nextafter(right.scales, torch.tensor(0.0))
        elif kind == "one scale for all rows":
            scales = right.scales.amax(0, keepdim=True).expand_as(right.scales)
        else:
            scales = right.scales
        steps = (wide / scales).clamp(-top, top)
        if form == "int8":
            steps = steps.trunc() if kind == "cut off" else steps.round()
            steps = (wide / scales + 0.5).floor().clamp(-top, top) if kind == "ties up" else steps
        return Rows(steps.to(right.codes.dtype), scales)

    return quantised


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["scale a bit less", "one scale for all rows", "cut off", "ties up"])
def test_other_codes_are_refused(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes that are not the definition's, in each of the two ways that tactics compute."""
    asked = dataclasses.replace(PROBLEMS[2], dtype=dtype)
    case = check.prepare(asked, CPU, 0)
    for module in ("allotrope.ops.rows", "allotrope.ops.linear_codes.decoded"):
        monkeypatch.setattr(f"{module}.quantise_rows", wrong_rows(kind))
    for name in ("torch_exact", "torch_tile8"):
        result = check.check_case(registry.tactic("linear_codes", name), case)
        assert not result.ok and "exceeds" in (result.reason or ""), name


def test_what_does_not_fit_is_refused_in_words() -> None:
    gpu, old = Device("cuda", "test", "sm_90", 132, 2**37), Device("cuda", "test", "sm_86", 80, 2**34)
    able = dataclasses.replace(CPU, features=("avx512_vnni",))  # this one may have no exact product of bytes

    def refusal(name: str, asked: Problem, device: Device = CPU) -> str:
        return str(registry.tactic("linear_codes", name).why_not(asked, device))

    eight8, four, fp8 = (problem(form, 4, 64, 32) for form in ("int8", "int4", "fp8"))
    for name in ("torch_mm", "torch_exact"):
        assert refusal(name, posed("int4", four)) == "activations 'int4' are unknown; there are none, int8, fp8"
        assert refusal(name, posed("fp8", eight8)) == "fp8 activations do not meet int8 weights; they meet fp8"
        assert refusal(name, posed("int8", fp8)) == "int8 activations do not meet fp8 weights; they meet int8 and int4"
    assert "these activations are to stay wide" in refusal("torch_exact", eight8)
    assert "weights with one scale per row" in refusal("torch_exact", posed("int8", four))
    assert "weights with one scale per row" in refusal("torch_int8", posed("int8", problem("int8", 4, 64, 8, 32)))
    assert refusal("torch_int8", posed("fp8", fp8)) == "it multiplies int8 codes, and these are e4m3"
    assert "multiples of 8; these are 33 and 5" in refusal("torch_int8", PROBLEMS[0], gpu)
    assert "sums of two products would saturate" in refusal("torch_int8", PROBLEMS[1], Device("cpu", "", "", 1, 1))
    assert "only column" in refusal("torch_int8", posed("int8", problem("int8", 1, 1, 8)), able)
    assert refusal("torch_int8", posed("int8", problem("int8", 1, 140000, 8)), able) == (
        "its sums are exact up to 132104 inputs, and these are 140000"
    )
    assert refusal("torch_scaled", posed("int8", eight8)) == "it multiplies e4m3 codes, and these are int8"
    assert "sm_89 and later" in refusal("torch_scaled", posed("fp8", fp8, "fp16"), old)
    assert "fewer bits than fp32" in refusal("torch_scaled", posed("fp8", fp8), gpu)
    assert "multiples of 16; these are 172 and 130" in refusal("torch_scaled", posed("fp8", PROBLEMS[6], "bf16"), gpu)
    assert refusal("torch_scaled", posed("fp8", fp8, "bf16"), gpu) == "None"


def test_workspaces_do_not_grow_with_the_rows() -> None:
    """Beyond those that are computed at a time; but x as its codes mean it, which the linear tactics want whole."""
    asked = {rows: posed("int8", problem("int8", rows, 4096, 11008)) for rows in (512, 8192)}
    for name in ("torch_int8", "torch_exact"):
        tactic = registry.tactic("linear_codes", name)
        assert tactic.workspace(asked[512], CPU) == tactic.workspace(asked[8192], CPU) < 2**26 + 2**24
