"""Formats and rounding: exact storage, codes that are truly the nearest, bounds that hold, refusals in words."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allotrope.errors import NumericalError, UsageError
from allotrope.quant.formats import Format, Quantised, dequantise, pack, parse_format, unpack
from allotrope.quant.rounding import round_to_nearest

INT8, INT4, FP8 = Format("int8"), Format("int4", 32), Format("fp8")
OFFSET = Format("int4", 32, symmetric=False)
EVERY = (INT8, Format("int8", 64), Format("int4"), INT4, OFFSET, Format("int4", None, False), FP8)
EVERY_BYTE = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(4, 64)


def weights(out: int = 12, width: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def all_codes(form: Format) -> torch.Tensor:
    """Every value of a code, in fp64."""
    if form.name == "fp8":
        values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).double()
        return values[values.isfinite()].unique()
    low, high = form.range
    return torch.arange(low, high + 1, dtype=torch.float64)


def spread(form: Format, side: torch.Tensor, width: int) -> torch.Tensor:
    """Scales or zeros, one for each weight."""
    return side.double().repeat_interleave(width // form.groups(width), dim=1)


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_every_byte_survives_unpacking_and_packing(form: Format) -> None:
    packed = pack(unpack(EVERY_BYTE, form), form)
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, EVERY_BYTE)


def test_int4_lies_low_nibble_first() -> None:
    """Written out by hand, since the round trip would also hold with the nibbles exchanged."""
    assert pack(torch.tensor([[1, -2, -8, 7]], dtype=torch.int8), INT4).tolist() == [[0xE1, 0x78]]
    assert pack(torch.tensor([[1, 14, 8, 7]], dtype=torch.int8), OFFSET).tolist() == [[0xE1, 0x78]]
    assert unpack(torch.tensor([[0xE1, 0x78]], dtype=torch.uint8), INT4).tolist() == [[1, -2, -8, 7]]
    assert unpack(torch.tensor([[0xE1, 0x78]], dtype=torch.uint8), OFFSET).tolist() == [[1, 14, 8, 7]]


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_bytes_are_counted_as_stored(form: Format) -> None:
    rounded = round_to_nearest(weights(), form, "w")
    parts = [pack(rounded.codes, form), rounded.scales, *([] if rounded.zeros is None else [rounded.zeros])]
    assert form.nbytes((12, 128)) == sum(part.numel() * part.itemsize for part in parts)


def test_bits_per_weight_are_the_known_ones() -> None:
    assert INT4.bits_per_weight((64, 128)) == 4.5
    assert OFFSET.bits_per_weight((64, 128)) == 4.75
    assert Format("int4", 128).bits_per_weight((64, 128)) == 4.125
    assert INT8.bits_per_weight((64, 128)) == 8.25


@pytest.mark.parametrize("form", EVERY, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_each_code_is_the_nearest_of_all(form: Format, seed: int) -> None:
    """Against every code there is, in fp64: none comes closer to the weight, and the scale spans it tightly."""
    weight = weights(8, seed=seed)
    weight[1, 5] *= 40
    weight[2] = weight[2].abs()
    weight[3] = 0
    rounded = round_to_nearest(weight, form, "w")
    scales = spread(form, rounded.scales, 128)
    zeros = 0 if rounded.zeros is None else spread(form, rounded.zeros, 128)
    choices = (all_codes(form).view(-1, 1, 1) - zeros) * scales
    least = (choices - weight.double()).abs().amin(0)
    assert torch.equal((dequantise(rounded, torch.float64) - weight.double()).abs(), least)


@pytest.mark.parametrize("form", [INT8, FP8], ids=str)
def test_a_hair_beside_the_middle_decides(form: Format) -> None:
    """Midpoints between neighbours, and just above and below: nothing rounds twice, and ties go to the even code."""
    codes = all_codes(form)
    middles = (codes[1:] + codes[:-1]) / 2
    hair = middles.abs() * 1e-13 + 1e-18
    weight = torch.stack((middles - hair, middles, middles + hair))
    weight = torch.cat((weight, torch.full((3, 1), float(form.top), dtype=torch.float64)), 1)  # so the scale is 1
    rounded = round_to_nearest(weight, form, "w")
    assert rounded.scales.tolist() == [[1.0]] * 3
    below, tie, above = dequantise(rounded, torch.float64)[:, :-1]
    assert torch.equal(below, codes[:-1])
    assert torch.equal(above, codes[1:])
    assert bool(((tie == below) | (tie == above)).all())
    assert not bool((rounded.codes.view(torch.uint8)[1, :-1] & 1).any())  # in both formats a code's last bit tells


@pytest.mark.parametrize("form", [form for form in EVERY if form.name != "fp8"], ids=str)
@given(seed=st.integers(0, 2**31), power=st.integers(-30, 12), shift=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_no_error_exceeds_half_a_step(form: Format, seed: int, power: int, shift: float) -> None:
    weight = (weights(4, seed=seed) / 0.02 + shift) * 2.0**power
    rounded = round_to_nearest(weight, form, "w")
    error = (dequantise(rounded, torch.float64) - weight.double()).abs()
    assert bool((error <= spread(form, rounded.scales, 128) / 2).all())


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_scales_are_tight(form: Format) -> None:
    """No step is larger than covering the group asks for, up to one unit in the stored scale's last place."""
    weight = weights()
    groups = weight.double().view(12, form.groups(128), -1)
    reach = groups.abs().amax(-1)
    if not form.symmetric:
        reach = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
    needed, scales = reach / form.top, round_to_nearest(weight, form, "w").scales
    assert bool((scales.double() >= needed).all())
    assert bool((scales.double() <= needed * (1 + 2 * torch.finfo(scales.dtype).eps)).all())


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_what_the_format_holds_it_keeps(form: Format) -> None:
    """Rounding what was rounded before changes nothing, so a checkpoint's own steps are found again."""
    codes = all_codes(form)
    drawn = torch.randint(len(codes), (8, 128), generator=torch.Generator().manual_seed(3))
    values = codes[drawn].view(8, form.groups(128), -1)
    values[..., 0], values[..., 1] = form.top, (0 if form.symmetric else form.range[0])
    values = values.clamp(min=-form.top)  # int4's −8 is no group's end
    weight = ((values - (0 if form.symmetric else 6)) * 2.0**-9).view(8, 128)
    assert torch.equal(dequantise(round_to_nearest(weight.float(), form, "w"), torch.float64), weight)


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_zeros_stay_zero_and_a_zero_group_is_harmless(form: Format) -> None:
    weight = weights()
    weight[0], weight[1, :64], weight[2, ::3] = 0, 0, 0
    again = dequantise(round_to_nearest(weight, form, "w"), torch.float32)
    assert bool(again.isfinite().all())
    assert torch.equal(again[weight == 0], torch.zeros_like(again[weight == 0]))


@pytest.mark.parametrize("form", EVERY, ids=str)
@pytest.mark.parametrize("size", [1e-7, 1e-30, 1e-42])
def test_minute_weights_get_a_normal_scale(form: Format, size: float) -> None:
    rounded = round_to_nearest(weights() * size, form, "w")
    assert bool((rounded.scales >= torch.finfo(form.scale_dtype).tiny).all())
    assert bool(dequantise(rounded, torch.float32).isfinite().all())


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_one_huge_value_is_kept(form: Format) -> None:
    weight = weights()
    weight[0, 7] = -60000.0
    again = dequantise(round_to_nearest(weight, form, "w"), torch.float32)
    assert float(again[0, 7]) == pytest.approx(-60000.0, rel=0.04)
    assert torch.equal(again[1:], dequantise(round_to_nearest(weight[1:], form, "w"), torch.float32))


def test_a_step_that_fp16_cannot_hold_is_refused() -> None:
    weight = weights()
    weight[0, 7] = 1e6
    with pytest.raises(NumericalError, match=re.escape("blocks.0.up: a step of 1.43e+05 is needed, and int4 in gro")):
        round_to_nearest(weight, INT4, "blocks.0.up")
    assert float(dequantise(round_to_nearest(weight, INT8, "w"), torch.float32)[0, 7]) == pytest.approx(1e6)


@pytest.mark.parametrize("form", EVERY, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_by_name(form: Format, bad: float) -> None:
    weight = weights()
    weight[3, 100] = bad
    with pytest.raises(NumericalError, match=r"blocks\.3\.down: the weight holds NaN or infinity; mend the checkpoint"):
        round_to_nearest(weight, form, "blocks.3.down")


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_dequantising_rounds_once(form: Format) -> None:
    rounded = round_to_nearest(weights(), form, "w")
    exact = dequantise(rounded, torch.float64)
    single = dequantise(rounded, torch.float32)
    assert torch.equal(single, exact.float())
    assert torch.equal(dequantise(rounded, torch.bfloat16), single.bfloat16())
    assert torch.equal(dequantise(rounded, torch.float16), single.half())


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_rows_do_not_depend_on_their_company(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = round_to_nearest(weights(), form, "w")
    monkeypatch.setattr("allotrope.quant.rounding._BLOCK", 5 * 128)
    in_blocks = round_to_nearest(weights(), form, "w")
    assert torch.equal(whole.codes.view(torch.uint8), in_blocks.codes.view(torch.uint8))
    assert torch.equal(whole.scales, in_blocks.scales)


@pytest.mark.parametrize("form", EVERY, ids=str)
def test_clipping_never_loses_and_often_wins(form: Format) -> None:
    weight = weights(64)

    def errors(*, clip: bool) -> torch.Tensor:
        error = dequantise(round_to_nearest(weight, form, "w", clip=clip), torch.float64) - weight
        return error.view(64, form.groups(128), -1).square().sum(-1)

    assert bool((errors(clip=True) <= errors(clip=False)).all())
    if form.name == "int4":
        assert float(errors(clip=True).sum()) < 0.97 * float(errors(clip=False).sum())


def test_clipping_by_the_output_lowers_the_output_error() -> None:
    inputs = torch.randn(256, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs[:, 4] *= 20
    weight, moments = weights(64, 32), (inputs.T @ inputs).unsqueeze(0)

    def error(by: torch.Tensor | None) -> float:
        again = dequantise(round_to_nearest(weight, INT4, "w", clip=True, moments=by), torch.float64)
        return float((inputs @ (again - weight).T).square().sum())

    assert error(moments) < 0.8 * error(None)


def test_words_become_formats() -> None:
    assert parse_format("int8") == INT8
    assert parse_format(" INT4 ") == INT4
    assert parse_format("int4", 128) == Format("int4", 128)
    assert parse_format("int4", 64, False) == Format("int4", 64, symmetric=False)
    assert parse_format("fp8", symmetric=True) == FP8
    assert [str(form) for form in (INT8, OFFSET)] == ["int8 per channel", "int4 in groups of 32, asymmetric"]
    assert all(Format(**form.to_json()) == form for form in EVERY)


@pytest.mark.parametrize(
    ("name", "group", "symmetric", "words"),
    [
        ("int3", None, None, "weight format is 'int3'; it must be one of int8, int4, fp8"),
        ("int4", 48, None, "group size is 48; it must be one of 32, 64, 128, or none for one scale per row"),
        ("int4", True, None, "group size is True; it must be one of 32, 64, 128, or none for one scale per row"),
        ("int4", -1, None, "group size is -1; it must be one of 32, 64, 128, or none for one scale per row"),
        ("fp8", 32, None, "group size is 32; fp8 has one scale per row, so it must be none"),
        ("fp8", None, False, "fp8 is to be asymmetric; only int4 can be, fp8 must be symmetric"),
        ("int8", None, False, "int8 is to be asymmetric; only int4 can be, int8 must be symmetric"),
    ],
)
def test_formats_that_are_none_are_refused(name: str, group: int | None, symmetric: bool | None, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        parse_format(name, group, symmetric)


@pytest.mark.parametrize(
    ("form", "shape", "words"),
    [
        (Format("int4", 64), (4, 96), "x: group size is 64; it must divide the width, 96; take groups of 32"),
        (
            Format("int8", 128),
            (4, 192),
            "x: group size is 128; it must divide the width, 192; take groups of 32 or 64",
        ),
        (INT4, (4, 40), "x: group size is 32; it must divide the width, 40; keep this weight wide, or take int8"),
        (Format("int4"), (4, 33), "x: its width is 33; int4 lies two to a byte, so it must be even"),
        (INT8, (33,), "x: its shape is (33,); only matrices [out, in] are quantised"),
        (INT8, (4, 0), "x: its shape is (4, 0); only matrices [out, in] are quantised"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(form: Format, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        round_to_nearest(torch.zeros(shape), form, "x")


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="codes: its width is 3; int4 lies two to a byte, so it must be even"):
        pack(torch.zeros(2, 3, dtype=torch.int8), INT4)
    with pytest.raises(UsageError, match="codes: a code is outside -8 … 7 and does not fit into four bits"):
        pack(torch.tensor([[0, 8]], dtype=torch.int8), INT4)
    with pytest.raises(UsageError, match="codes: a code is outside 0 … 15 and does not fit into four bits"):
        pack(torch.tensor([[0, -1]], dtype=torch.int8), OFFSET)


def test_a_quantised_weight_is_whole_from_birth() -> None:
    codes, scales = torch.zeros(2, 64, dtype=torch.int8), torch.ones(2, 2, dtype=torch.float16)
    zeros = torch.zeros(2, 2, dtype=torch.uint8)
    assert Quantised(INT4, codes, scales).shape == (2, 64)
    with pytest.raises(UsageError, match=re.escape("scales are float32 (2, 2); they must be float16 (2, 2)")):
        Quantised(INT4, codes, scales.float())
    with pytest.raises(UsageError, match=re.escape("codes are float32 (2, 64); they must be int8 (2, 64)")):
        Quantised(INT4, codes.float(), scales)
    with pytest.raises(UsageError, match=re.escape("zeros are uint8 (2, 1); they must be uint8 (2, 2)")):
        Quantised(OFFSET, codes, scales, zeros[:, :1])
    with pytest.raises(UsageError, match="zeros are missing; int4 in groups of 32, asymmetric is otherwise"):
        Quantised(OFFSET, codes, scales)
    with pytest.raises(UsageError, match="zeros are given; int4 in groups of 32 is otherwise"):
        Quantised(INT4, codes, scales, zeros)
