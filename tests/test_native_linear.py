"""The native linear layers, on every instruction set that this machine has, against the reference and bit for bit."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from allotrope import native
from allotrope.build.pieces import multiples
from allotrope.hw.detect import detect
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem
from allotrope.ops.linear_codes import PER_BYTE
from allotrope.ops.linear_codes.grouped import _added
from allotrope.ops.native import NativeTactic
from allotrope.ops.packing import PACKINGS
from allotrope.ops.rows import quantise_rows
from allotrope.ops.tactic import Tactic

CPU = detect("cpu")
ISAS = [name for name, lacks in native.find().lacking.items() if not lacks]
pytestmark = pytest.mark.skipif(native.find().core is None, reason=str(native.why_not()))


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One after the other all instruction sets that can run here."""
    found = replace(native.find(), isa=request.param)
    monkeypatch.setattr(native, "find", lambda: found)
    return str(request.param)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One, except where a test asks for more."""
    before = native.threads()
    native.set_threads(1)
    yield
    native.set_threads(before)


def wide(op: str, rows: int, into: int, out: int, *present: str, **params: str) -> Problem:
    return Problem(op, {"rows": rows, "in": into, "out": out}, params, "fp32", frozenset(present))


def coded(form: str, rows: int, into: int, out: int, group: int | None, given: str, *present: str) -> Problem:
    groups = 1 if group is None else into // group
    axes = {"rows": rows, "in": into, "out": out, "packed": into // PER_BYTE[form], "groups": groups}
    return Problem("linear_codes", axes, {"format": form, "activations": given}, "fp32", frozenset(present))


WIDE = [
    wide("linear", 1, 1, 1),
    wide("linear", 3, 33, 17, "bias"),
    wide("linear", 14, 700, 50),
    wide("linear", 250, 257, 50, "bias"),
    wide("linear_activation", 2, 96, 35, "bias", kind="gelu"),
    wide("linear_activation", 13, 64, 16, kind="silu"),
    wide("linear_activation", 1, 64, 40, kind="gelu_tanh"),
    wide("linear_add", 1, 300, 72, "bias"),
    wide("linear_add", 30, 48, 31),
    wide("linear_stored", 1, 260, 70, "bias", store="fp16"),
    wide("linear_stored", 20, 77, 33, store="fp16"),
    wide("linear_stored", 5, 129, 64, store="bf16"),
    # As many rows as fill no whole number of some instruction set's tallest tiles, and inputs enough for that to show.
    wide("linear", 11, 4096, 16),
    wide("linear", 24, 4099, 17, "bias"),
    wide("linear", 36, 4096, 33),
    wide("linear_stored", 24, 4096, 16, store="fp16"),
]
CODED = [
    coded("int8", 1, 1000, 64, None, "none", "bias"),
    coded("int8", 15, 35, 19, None, "none"),
    coded("int8", 4, 192, 40, 64, "none"),
    coded("int4", 1, 256, 72, 32, "none", "bias"),
    coded("int4", 17, 768, 30, 128, "none", "zeros"),
    coded("int4", 1, 384, 32, 64, "none", "zeros"),
    coded("int4", 3, 522, 20, None, "none"),
    coded("int4", 2, 522, 20, None, "none", "zeros"),
    coded("fp8", 6, 301, 33, None, "none", "bias"),
    coded("int8", 11, 4099, 17, None, "none"),
    coded("int4", 24, 4096, 16, 32, "none", "zeros"),
    coded("int4", 36, 4096, 33, 128, "none"),
]
EIGHT = [
    coded("int8", 1, 1000, 64, None, "int8", "bias"),
    coded("int8", 2, 1, 1, None, "int8"),
    coded("int8", 5, 39, 70, None, "int8"),
    coded("int8", 250, 131, 50, None, "int8", "bias"),
    coded("int8", 7, 192, 40, 64, "int8"),
    coded("int4", 1, 256, 72, 32, "int8", "bias"),
    coded("int4", 9, 64, 16, 64, "int8"),
    coded("int4", 26, 768, 150, 128, "int8", "zeros"),
    coded("int4", 3, 522, 20, None, "int8"),
    coded("int4", 2, 522, 20, None, "int8", "zeros", "bias"),
    coded("int8", 11, 4099, 17, None, "int8"),
    coded("int4", 24, 4096, 16, 32, "int8", "zeros"),
    coded("int4", 36, 4096, 33, 128, "int8"),
    # Tiles of AMX: an odd number of groups, more rows than are encoded at a time, panels that cannot be shared evenly.
    coded("int4", 40, 288, 90, 32, "int8"),
    coded("int4", 9, 96, 40, 32, "int8", "zeros"),
    coded("int8", 250, 4160, 40, None, "int8"),
    coded("int4", 250, 3296, 40, 32, "int8"),
]


EMBED = [
    Problem(op, {"rows": 5, "vocab": 37, "width": 64, **axes}, params, "fp32", frozenset(present))
    for op, axes, params, present in (
        ("embed_codes", {"packed": 64, "groups": 1}, {"format": "int8"}, ()),
        ("embed_codes", {"packed": 32, "groups": 2}, {"format": "int4"}, ("zeros",)),
        ("embed_codes", {"packed": 32, "groups": 1}, {"format": "int4"}, ()),
        ("embed_codes", {"packed": 64, "groups": 1}, {"format": "fp8"}, ()),
        ("embed_codes", {"width": 301, "packed": 301, "groups": 1}, {"format": "int8"}, ()),
        ("embed_codes", {"width": 330, "packed": 165, "groups": 1}, {"format": "int4"}, ("zeros",)),
        ("embed_codes", {"width": 320, "packed": 160, "groups": 10}, {"format": "int4"}, ()),
        ("embed_stored", {}, {"store": "fp16"}, ()),
        ("embed_stored", {}, {"store": "bf16"}, ()),
    )
]


def able(posed: Problem, name: str = "native") -> list[Tactic]:
    return [
        tactic
        for tactic in registry.tactics(posed.op)
        if tactic.name.startswith(name) and tactic.why_not(posed, CPU) is None
    ]


@pytest.mark.parametrize("posed", [*WIDE, *CODED, *EIGHT, *EMBED], ids=Problem.key)
def test_it_is_right_on_every_instruction_set(posed: Problem, isa: str) -> None:
    tactics = able(posed)
    assert len(tactics) == (2 if posed.op == "embed_stored" else 1)  # from rows and from panels
    assert all(check.check(tactic, posed, CPU).reason is None for tactic in tactics)


@pytest.mark.parametrize("posed", [WIDE[5], WIDE[9], CODED[2], CODED[4], EIGHT[0], EIGHT[7]], ids=Problem.key)
def test_a_row_keeps_its_bits_in_any_company(posed: Problem, isa: str) -> None:
    [tactic] = able(posed)
    most = 512 if isa == ISAS[-1] else 64
    assert check.check_rows(tactic, posed, CPU, most=most) is None


@pytest.mark.parametrize("posed", [WIDE[0], WIDE[-1], CODED[-1], EIGHT[-3], EIGHT[-1]], ids=Problem.key)
def test_a_workspace_serves_fewer_rows_and_threads_as_well(posed: Problem, isa: str) -> None:
    """An engine is opened for its largest step; the core says then what that takes by its instruction set."""
    [tactic] = able(posed)
    assert isinstance(tactic, NativeTactic)
    for threads in (1, 2, 5):
        rooms = [tactic.scratch(replace(posed, axes={**posed.axes, "rows": rows}), threads) for rows in range(1, 500)]
        fewer = [tactic.scratch(replace(posed, axes={**posed.axes, "rows": rows}), 1) for rows in range(1, 500)]
        assert rooms == sorted(rooms)
        assert all(one <= more for one, more in zip(fewer, rooms, strict=True))


def outcome(tactic: Tactic, posed: Problem) -> torch.Tensor:
    contract = registry.contract(posed.op)
    ins = check.rounded(contract, posed, contract.make_inputs(posed, 5))
    return poison.bits(poison.run(tactic, contract, posed, CPU, ins).outs["out"])


@pytest.mark.parametrize("posed", [*WIDE, *CODED, *EIGHT], ids=Problem.key)
def test_threads_and_vectors_change_no_bit(posed: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable kernels fuse nothing, nor does an activation compute alike in all; the others are compared."""
    [tactic] = able(posed)
    core = native.find()
    fusing = [isa for isa in ISAS if isa != "portable"] or ISAS
    found = []
    for isa in fusing:
        monkeypatch.setattr(native, "find", lambda isa=isa: replace(core, isa=isa))
        for count in (1, 2, 3):
            native.set_threads(count)
            found.append(outcome(tactic, posed))
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("posed", EIGHT, ids=Problem.key)
def test_products_of_codes_have_the_bits_of_torchs_exact_ones(posed: Problem, isa: str) -> None:
    """Whatever the instruction set: integers are exact, and every step after them is rounded once."""
    [tactic] = able(posed)
    twins = [found for name in ("torch_exact", "torch_groups") for found in able(posed, name)]
    assert len(twins) == 1
    assert tactic.row_class(posed, CPU) == twins[0].row_class(posed, CPU)
    assert torch.equal(outcome(tactic, posed), outcome(twins[0], posed))
    assert check.check_rows(tactic, posed, CPU, among=twins, most=8) is None


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("code", [-128, 127])
def test_the_largest_products_do_not_saturate(form: str, code: int, isa: str) -> None:
    """127 · −128 in every place, which overflows sums of two in 16 bits."""
    posed = coded(form, 3, 1024, 32, 32 if form == "int4" else None, "int8")
    [tactic] = able(posed)
    byte = code & 255 if form == "int8" else (0x88 if code < 0 else 0x77)
    scales = torch.ones(32, posed.axes["groups"], dtype=torch.float32 if form == "int8" else torch.float16)
    ins = {
        "x": torch.full((3, 1024), 127.0),
        "codes": torch.full((32, posed.axes["packed"]), byte, dtype=torch.uint8),
        "scales": scales,
    }
    outs = poison.run(tactic, registry.contract(posed.op), posed, CPU, ins).outs
    value = code if form == "int8" else code // 16
    assert torch.equal(outs["out"], torch.full((3, 32), 127.0 * 1024 * value))


@pytest.mark.parametrize("rows", [1, 40])
def test_codes_are_those_of_a_true_division(rows: int, isa: str) -> None:
    """Beside every tie between two codes, under scales of all sizes; the weight picks each code out."""
    posed = coded("int8", rows, 256, 256, None, "int8")
    [tactic] = able(posed)
    random = torch.Generator().manual_seed(4)
    for _ in range(40 if rows == 1 else 5):
        peaks = (1 + torch.rand(rows, 1, generator=random)) * 2.0 ** torch.randint(
            -126, 127, (rows, 1), generator=random
        )
        peaks[0] *= 1 - 2.0**-24
        ties = (peaks / 127 * (torch.arange(256) - 127.5)).clamp(-peaks, peaks)
        beside = ties.view(torch.int32) + torch.randint(-2, 3, (rows, 256), generator=random).int()
        x = torch.where(ties == 0, ties, beside.view(torch.float32)).clamp(-peaks, peaks)
        x[:, 0] = peaks[:, 0]
        expected = quantise_rows(x, "int8")
        ins = {"x": x, "codes": torch.eye(256, dtype=torch.uint8), "scales": torch.ones(256, 1)}
        found = poison.run(tactic, registry.contract(posed.op), posed, CPU, ins).outs["out"]
        assert torch.equal(found, expected.codes.float() * expected.scales)


def test_a_group_s_sum_is_added_with_one_rounding() -> None:
    """Against exact fractions, on sums that lie beside ties of fp32, where two roundings go the wrong way."""
    random = torch.Generator().manual_seed(3)
    products = torch.randint(-(2**20), 2**20, (4000,), generator=random).double() * 2.0**-13
    products *= 1 + torch.randint(0, 1024, (4000,), generator=random).double() / 1024
    totals = (products.float() * 2.0 ** torch.randint(-30, 30, (4000,), generator=random)).double()
    found = _added(products, totals)
    for product, total, one in zip(products.tolist(), totals.tolist(), found.tolist(), strict=True):
        exact = Fraction(product) + Fraction(total)
        away = [torch.nextafter(torch.tensor(one), torch.tensor(way)).item() for way in (math.inf, -math.inf)]
        assert all(abs(exact - Fraction(one)) <= abs(exact - Fraction(other)) for other in away)
    edge = torch.tensor([2.0**-60], dtype=torch.float64)
    tie = torch.tensor([1 + 2.0**-24], dtype=torch.float64)  # half way between two fp32: what is lost decides
    assert _added(tie, edge).item() == 1 + 2.0**-23 and _added(tie, -edge).item() == 1.0
    assert (tie + edge).float().item() == 1.0


@pytest.mark.parametrize("posed", EMBED, ids=Problem.key)
def test_a_row_looked_up_is_the_weight_that_the_head_multiplies(posed: Problem, isa: str) -> None:
    """Bit for bit what decoding gives, which torch's own tactic takes."""
    [torch_one] = able(posed, "torch")
    assert check.check(torch_one, posed, CPU).reason is None
    for native_one in able(posed):
        assert torch.equal(outcome(native_one, posed), outcome(torch_one, posed))


def test_what_it_cannot_do_it_says() -> None:
    def refusal(name: str, posed: Problem) -> str | None:
        return registry.tactic(posed.op, name).why_not(posed, CPU)

    assert refusal("native_int4_int8", coded("int4", 1, 80, 16, 40, "int8")) == (
        "it takes groups of 32, 64, 128 or multiples of 256, not of 40"
    )
    assert refusal("native_int8", EIGHT[0]) == "its activations stay wide, and these are int8"
    assert refusal("native_int8_int8", CODED[0]) == "its activations are int8, and these are none"
    assert refusal("native_int4", CODED[0]) == "it reads int4, and these weights are int8"
    long = coded("int8", 1, 70000, 16, None, "int8")
    assert "exact up to 66311 inputs" in str(refusal("native_int8_int8", long))
    assert refusal("native_fp16", WIDE[11]) == "it widens fp16, and this weight is stored in bf16"
    assert refusal("native", replace(WIDE[0], dtype="bf16")) == "the native core computes in fp32, not in bf16"


@pytest.mark.parametrize("packing", ["panels", "quads"])
@pytest.mark.parametrize("parts", [[(5, 3)], [(16, 4), (32, 4)], [(7, 10), (1, 10), (30, 10)], [(3, 1)]], ids=str)
def test_what_is_packed_comes_back(packing: str, parts: list[tuple[int, int]]) -> None:
    random, one = np.random.default_rng(1), PACKINGS[packing]
    for dtype in (np.uint8,) if packing == "quads" else (np.uint8, np.uint16, np.float32):
        given = [random.integers(1, 200, shape).astype(dtype) for shape in parts]
        packed = one.pack(given)
        assert packed.shape == one.shape(parts) and packed.flags.c_contiguous
        back = one.unpack(packed, parts)
        assert all(np.array_equal(a, b) for a, b in zip(given, back, strict=True))
        assert np.sum(packed != 0) == sum(np.prod(shape) for shape in parts)  # and what fills it up is zero
        for size in (1, 3, 16, 20):  # and in pieces, as a builder packs and who runs the references unpacks
            rows = np.concatenate(given)
            pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
            made = np.concatenate([one.pack([piece]) for piece in multiples(iter(pieces), one.piece)])
            assert np.array_equal(made, packed)


def test_the_native_tactics_are_there_without_torch() -> None:
    """What serves an engine of any format: torch takes seconds and megabytes to import."""
    ops = ("linear", "linear_add", "linear_activation", "linear_stored", "linear_codes", "embed_codes", "embed_stored")
    lines = [f"import allotrope.ops.{op}.via_native" for op in ops]
    script = "; ".join(["import sys", *lines, "sys.exit('torch' in sys.modules)"])
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
