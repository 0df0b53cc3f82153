"""Linear layers over weights in few bits: what codes mean, every tactic against the decoded weight, row classes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.codes import decoded, unpacked
from allotrope.ops.contract import Problem
from allotrope.ops.linear_codes import FORMATS, PER_BYTE
from allotrope.ops.tactic import Tactic

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, GPU = detect("cpu"), Device("cuda", "test", "sm_90", 132, 2**37)


def problem(form: str, rows: int, into: int, out: int, group: int | None = None, *present: str) -> Problem:
    axes = {
        "rows": rows,
        "in": into,
        "out": out,
        "packed": into // PER_BYTE[form],
        "groups": 1 if group is None else into // group,
    }
    return Problem("linear_codes", axes, {"format": form}, "fp32", frozenset(present))


PROBLEMS = [
    problem("int8", 7, 33, 5, None, "bias"),
    problem("int8", 1, 64, 64),
    problem("int8", 20, 96, 130, 32),
    problem("int8", 33, 2080, 131, None, "bias"),
    problem("int4", 3, 64, 172, 32),
    problem("int4", 1, 128, 31, 128, "zeros"),
    problem("int4", 70, 192, 48, 64, "zeros", "bias"),
    problem("int4", 5, 18, 20),
    problem("fp8", 9, 172, 130, None, "bias"),
    problem("fp8", 2, 31, 1),
    problem("int8", 3, 2048, 700, None, "bias"),  # decoded a part at a time
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return detect(request.param)


def able(posed: Problem, device: Device) -> list[Tactic]:
    candidates = (*registry.tactics(posed.op), registry.tactic(posed.op, "reference"))
    return [tactic for tactic in candidates if tactic.why_not(posed, device) is None]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("posed", PROBLEMS, ids=lambda posed: posed.key())
def test_every_tactic_is_right(posed: Problem, dtype: str, device: Device) -> None:
    posed = Problem(posed.op, posed.axes, posed.params, dtype, posed.present)
    tactics = able(posed, device)
    assert len(tactics) >= 3
    for tactic in tactics:
        for seed in range(2):
            assert check.check(tactic, posed, device, seed).reason is None, tactic.name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("posed", [PROBLEMS[1], PROBLEMS[6], PROBLEMS[8]], ids=lambda posed: posed.key())
def test_a_row_keeps_its_bits_in_any_company(posed: Problem, dtype: str, device: Device) -> None:
    posed = Problem(posed.op, posed.axes, posed.params, dtype, posed.present)
    classed = [tactic for tactic in able(posed, device) if tactic.row_class(posed, device)]
    assert len(classed) >= 3
    for tactic in classed:
        assert check.check_rows(tactic, posed, device, most=64) is None


def value_of_e4m3(byte: int) -> Fraction:
    """By the definition: a sign, four bits of exponent with bias 7, three of mantissa; exponent 0 is denormal."""
    sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
    size = (
        Fraction(mantissa, 8) * Fraction(2) ** -6
        if not exponent
        else (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)
    )
    return -size if sign else size


def test_every_byte_means_what_its_format_says() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, -1)
    assert unpacked(bytes_, "int8").tolist() == [[b - 256 if b > 127 else b for b in range(256)]]
    halves = [half for b in range(256) for half in (b % 16, b // 16)]
    assert unpacked(bytes_, "int4", signed=False).tolist() == [halves]
    assert unpacked(bytes_, "int4").tolist() == [[half - 16 if half > 7 else half for half in halves]]
    found = unpacked(bytes_, "fp8").double()[0].tolist()
    for byte, value in enumerate(found):
        if byte & 0x7F == 0x7F:
            assert value != value
        else:
            assert Fraction(value) == value_of_e4m3(byte)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("groups", [1, 3])
def test_a_weight_is_code_less_zero_times_scale(form: str, groups: int) -> None:
    """One by one, in exact fractions, and rounded once."""
    source = torch.Generator().manual_seed(groups)
    packed = torch.randint(0, 127, (4, 12), generator=source, dtype=torch.uint8)
    scales = torch.rand(4, groups, generator=source).half()
    zeros = torch.randint(0, 16, (4, groups), generator=source, dtype=torch.uint8) if form == "int4" else None
    codes = unpacked(packed, form, zeros is None).double()
    exact = decoded(packed, scales, zeros, form, torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(decoded(packed, scales, zeros, form, dtype), exact.to(dtype))
    width = codes.shape[1]
    for row in range(4):
        for column in range(width):
            group = column * groups // width
            zero = Fraction(0) if zeros is None else Fraction(int(zeros[row, group]))
            wanted = (Fraction(float(codes[row, column])) - zero) * Fraction(float(scales[row, group]))
            assert Fraction(float(exact[row, column])) == wanted


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_that_mean_nan_stay_nan(form: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    every[1] = 1
    wanted = unpacked(every, form).double()
    for dtype in (torch.float32, torch.float64):
        found = decoded(every, torch.ones(2, 1), None, form, dtype)
        assert torch.equal(found.double().nan_to_num(1e9), wanted.nan_to_num(1e9))
        assert int(found.isnan().sum()) == (2 if form == "fp8" else 0)


def test_a_large_weight_is_decoded_a_part_at_a_time() -> None:
    head = problem("int4", 4, 4096, 151936, 32)
    for tactic in able(head, CPU):
        assert tactic.workspace(head, CPU) <= 2**23, tactic.name
    for tactic in able(head, GPU):
        assert tactic.workspace(head, GPU) <= 2**25 + 2**23, tactic.name


def test_what_does_not_fit_is_refused_in_words() -> None:
    [tactic] = [tactic for tactic in registry.tactics("linear_codes") if tactic.name == "torch_mm"]
    good = problem("int4", 1, 64, 8, 32)

    def refusal(**changes: object) -> str | None:
        fields = {"axes": good.axes, "params": good.params, "present": good.present} | changes
        return tactic.why_not(Problem("linear_codes", dtype="fp32", **fields), CPU)  # type: ignore[arg-type]

    assert refusal() is None
    assert refusal(params={"format": "int5"}) == "format 'int5' is unknown; there are int8, int4, fp8"
    assert refusal(axes={**good.axes, "packed": 31}) == "31 bytes and 2 groups a row do not fit 64 codes of int4"
    assert refusal(axes={**good.axes, "groups": 3}) == "32 bytes and 3 groups a row do not fit 64 codes of int4"
    eight = problem("int8", 1, 64, 8)
    assert "no zeros" in str(refusal(axes=eight.axes, params=eight.params, present=frozenset({"zeros"})))


def test_it_costs_what_is_read() -> None:
    contract = registry.contract("linear_codes")
    assert contract.cost(problem("int4", 1, 128, 10, 32, "zeros")).bytes == 10 * 64 + 10 * 4 * 3 + 138 * 4
    assert contract.cost(problem("int8", 2, 128, 10)).bytes == 10 * 128 + 10 * 4 + 2 * 138 * 4


def test_the_product_that_widens_in_registers_knows_its_bounds() -> None:
    """It reads past a row's end where it does not end on a whole step: that must never be tried."""
    tactic = registry.tactic("linear_codes", "torch_int8pack")
    wide = Device("cpu", "test", "x86_64-avx512f", 2, 2**33, ("avx2", "avx512f"))

    def refusal(asked: Problem, device: Device = wide, dtype: str = "bf16") -> str:
        return str(tactic.why_not(Problem(asked.op, asked.axes, asked.params, dtype, asked.present), device))

    assert refusal(problem("int8", 3, 96, 130)) == "None"
    assert refusal(problem("int8", 3, 48, 5)) == "it reads 32 columns at a time, past the end of a row of 48"
    assert refusal(problem("int8", 3, 96, 130, 32)) == "it takes int8 weights with one scale per row"
    assert refusal(problem("int4", 3, 96, 130)) == "it takes int8 weights with one scale per row"
    assert refusal(problem("int8", 3, 96, 130), dtype="fp32").startswith("it multiplies bf16 with int8")
    assert refusal(problem("int8", 3, 96, 130), GPU) == "torch has this product for CPUs with AVX-512"


def test_a_weight_that_lies_anywhere_is_multiplied() -> None:
    """torch's product of bf16 with int8 ends the process where the weight begins at an odd address."""
    asked = Problem("linear_codes", {**problem("int8", 3, 96, 130).axes}, {"format": "int8"}, "bf16")
    tactic = registry.tactic("linear_codes", "torch_int8pack")
    if tactic.why_not(asked, CPU) is not None:
        pytest.skip(str(tactic.why_not(asked, CPU)))
    case = check.prepare(asked, CPU, seed=0)
    moved = torch.empty(130 * 96 + 64, dtype=torch.uint8)[1 : 1 + 130 * 96].view(130, 96).copy_(case.ins["codes"])
    out = torch.empty(3, 130, dtype=torch.bfloat16)
    room = torch.empty(tactic.workspace(asked, CPU), dtype=torch.uint8)
    tactic.run({"out": out}, {**case.ins, "codes": moved}, {"format": "int8", "activations": "none"}, room)
    assert check.judge(case, {"out": out}).ok
