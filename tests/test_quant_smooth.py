"""Eight-bit activations: rows exactly, and SmoothQuant against the outlier channel that it exists for."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allotrope.errors import NumericalError, UsageError
from allotrope.quant.formats import Format, dequantise
from allotrope.quant.rounding import round_to_nearest
from allotrope.quant.shared import Shared
from allotrope.quant.smooth import product, quantise_rows, smooth, smooth_scales

INT8, FP8 = Format("int8"), Format("fp8")


def layer(outlier: float = 1.0, seed: int = 0) -> Shared:
    make = torch.Generator().manual_seed(seed)
    inputs = torch.randn(128, 96, generator=make)
    inputs[:, 11] *= outlier
    weights = {name: torch.randn(out, 96, generator=make) * 0.02 for name, out in (("gate", 80), ("up", 48))}
    return Shared(weights, inputs)


def w8a8_error(inputs: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, *, without: int) -> float:
    """By hand in fp64, with what the outlier channel adds taken out of the scale that errors are measured by."""
    rows = quantise_rows(inputs / scales)
    values = rows.codes.double() * rows.scales.double()
    stored = dequantise(round_to_nearest(weight * scales, INT8, "w"), torch.float64)
    exact = inputs.double() @ weight.double().T
    rest = exact - inputs[:, without : without + 1].double() * weight[:, without].double()
    return float(torch.linalg.norm(values @ stored.T - exact) / torch.linalg.norm(rest))


def test_a_planted_outlier_channel_degrades_and_smoothing_mends_it() -> None:
    """One channel times 50: a token's step grows by as much, and the other channels drown."""
    healthy, planted = layer(), layer(outlier=50.0)
    found, none = smooth(planted), torch.ones(96)
    assert found.strength is not None
    for name in planted.weights:
        before = w8a8_error(healthy.inputs, healthy.weights[name], none, without=11)
        without = w8a8_error(planted.inputs, planted.weights[name], none, without=11)
        smoothed = w8a8_error(planted.inputs, planted.weights[name], found.scales, without=11)
        assert without > 8 * before
        assert smoothed < 3 * before  # balanced, weights and activations each bear √50 of it
        assert smoothed < without / 4
    assert found.error < found.plain / 4


def test_it_holds_on_inputs_not_seen() -> None:
    planted, unseen = layer(outlier=50.0), layer(outlier=50.0, seed=5).inputs
    scales, weight = smooth(planted).scales, planted.weights["up"]
    smoothed = w8a8_error(unseen, weight, scales, without=11)
    assert smoothed < w8a8_error(unseen, weight, torch.ones(96), without=11) / 4


@pytest.mark.parametrize("form", [INT8, FP8], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_than_without(form: Format, seed: int) -> None:
    found = smooth(layer(seed=seed), form)
    assert found.error <= found.plain


def test_no_smoothing_is_among_the_choices() -> None:
    """Whole numbers that eight bits hold exactly as they stand, and by no other scales."""
    signs = layer()
    columns = torch.tensor([127.0, 100.0, 33.0]).repeat(32)
    found = smooth(Shared({"up": signs.weights["up"].sign() * columns}, signs.inputs.sign()))
    assert found.strength is None
    assert torch.equal(found.scales, torch.ones(96))
    assert found.error == found.plain < 1e-6


def test_peaks_over_the_whole_text_count() -> None:
    """The sample need not hold a channel's loudest moment."""
    planted = layer(outlier=50.0)
    sampled = planted.inputs.abs().amax(0)
    peaks = sampled.clone()
    peaks[60] *= 4
    found = smooth(planted, peaks=peaks)
    assert found.strength is not None
    assert torch.equal(found.scales, smooth_scales(peaks, planted.weights, found.strength))
    assert not torch.equal(found.scales, smooth_scales(sampled, planted.weights, found.strength))


def test_the_scales_are_the_formula_up_to_a_common_factor() -> None:
    peaks = torch.tensor([1.0, 16.0, 0.0, 4.0])
    weights = {"a": torch.tensor([[1.0, -0.25, 1.0, 0.0]]), "b": torch.tensor([[-4.0, 0.125, 1.0, 0.0]])}
    found = smooth_scales(peaks, weights, 0.75)
    assert float(found[1] / found[0]) == pytest.approx((16**0.75 / 0.25**0.25) / (1 / 4**0.25), rel=0.01)
    assert found[2:].tolist() == [1.0, 1.0]  # a dead channel, and a column that multiplies nothing


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    words = f"smoothing strength is {strength}; it must be from 0 to 1"
    with pytest.raises(UsageError, match=re.escape(words)):
        smooth_scales(torch.ones(4), {"w": torch.ones(2, 4)}, strength)


@given(seed=st.integers(0, 2**31), power=st.integers(-110, 100), width=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_no_activation_is_off_by_more_than_half_a_step(seed: int, power: int, width: int) -> None:
    values = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    rows = quantise_rows(values)
    assert rows.codes.shape == values.shape
    assert rows.scales.shape == (3, 2, 1)
    assert int(rows.codes.abs().max()) == 127
    error = (rows.codes.double() * rows.scales.double() - values.double()).abs()
    assert bool((error <= 0.50002 * rows.scales.double()).all())  # half a step, and fp32's own rounding of 127 steps


def test_fp8_rows_reach_the_formats_end() -> None:
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 1e-3
    rows = quantise_rows(values, FP8)
    assert rows.codes.float().abs().amax(-1).tolist() == [448.0] * 5
    error = (rows.codes.double() * rows.scales.double() - values.double()).abs()
    reach = torch.maximum(values.double().abs() / 16, rows.scales.double() * 2.0**-9)
    assert bool((error <= 1.00001 * torch.minimum(reach, values.double().abs().amax(-1, keepdim=True))).all())


@pytest.mark.parametrize("form", [INT8, FP8], ids=str)
def test_a_row_of_zeros_stays_and_a_broken_row_shows(form: Format) -> None:
    values = torch.ones(4, 8)
    values[1], values[2, 3], values[3, 0] = 0, float("nan"), float("-inf")
    found = product(quantise_rows(values, form), round_to_nearest(torch.ones(2, 8), form, "w"), torch.float32)
    assert found[0].tolist() == pytest.approx([8.0, 8.0])
    assert found[1].tolist() == [0.0, 0.0]
    assert bool(found[2:].isnan().all())


@pytest.mark.parametrize("form", [INT8, FP8, Format("int4"), Format("int4", None, symmetric=False)], ids=str)
def test_the_product_is_that_of_what_is_stored(form: Format) -> None:
    planted = layer()
    rows, weight = quantise_rows(planted.inputs), round_to_nearest(planted.weights["up"], form, "up")
    truth = (rows.codes.double() * rows.scales.double()) @ dequantise(weight, torch.float64).T
    found = product(rows, weight, torch.float64)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-13
    assert torch.equal(product(rows, weight, torch.float16), found.half())


def test_groups_are_refused() -> None:
    words = (
        "8-bit activations are to meet int4 in groups of 32; their products need one scale per row; take int8 or fp8"
    )
    with pytest.raises(UsageError, match=re.escape(words)):
        product(
            quantise_rows(torch.ones(2, 32)), round_to_nearest(torch.ones(2, 32), Format("int4", 32), "w"), torch.half
        )
    with pytest.raises(UsageError, match=re.escape("8-bit activations are to meet int8 in groups of 32;")):
        smooth(layer(), Format("int8", 32))


def test_nan_weights_are_refused_by_name() -> None:
    broken = layer()
    broken.weights["gate"][0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"^gate: the weight holds NaN or infinity"):
        smooth(broken)
