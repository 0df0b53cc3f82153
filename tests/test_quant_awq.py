"""AWQ: better than rounding to nearest where channels are loud, never worse, and folding changes nothing."""

from __future__ import annotations

import re

import pytest
import torch

from allotrope.errors import NumericalError, UsageError
from allotrope.quant.awq import Awq, awq
from allotrope.quant.formats import Format, dequantise
from allotrope.quant.rounding import round_to_nearest
from allotrope.quant.shared import Shared, tidy

WIDTH = 128
FORMS = (Format("int4", 32), Format("int4", 64, symmetric=False), Format("int4"))


def shared(seed: int = 0, loud: float = 20.0, dtype: torch.dtype = torch.float32) -> Shared:
    """Two linears that read one input, of which every 16th channel is loud."""
    make = torch.Generator().manual_seed(seed)
    inputs = torch.randn(192, WIDTH, generator=make)
    inputs[:, 5::16] *= loud
    weights = {name: torch.randn(out, WIDTH, generator=make) * 0.02 for name, out in (("q", 64), ("k", 32))}
    return Shared({name: weight.to(dtype) for name, weight in weights.items()}, inputs)


def output_error(found: Awq, given: Shared, seen: torch.Tensor) -> float:
    """By hand, in fp64: what the op before would give, times what is stored, against the truth."""
    wrong = right = 0.0
    for name, weight in given.weights.items():
        exact = seen.double() @ weight.double().T
        again = (seen.double() / found.scales.double()) @ dequantise(found.weights[name], torch.float64).T
        wrong += float((again - exact).square().sum())
        right += float(exact.square().sum())
    return (wrong / right) ** 0.5


def nearest_error(given: Shared, form: Format, seen: torch.Tensor) -> float:
    wrong = right = 0.0
    for name, weight in given.weights.items():
        exact = seen.double() @ weight.double().T
        again = seen.double() @ dequantise(round_to_nearest(weight, form, name), torch.float64).T
        wrong += float((again - exact).square().sum())
        right += float(exact.square().sum())
    return (wrong / right) ** 0.5


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_loud_channels_are_spared(form: Format) -> None:
    given, unseen = shared(), shared(seed=9).inputs
    found = awq(given, form)
    assert found.exponent > 0
    assert output_error(found, given, unseen) < 0.7 * nearest_error(given, form, unseen)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_errors_it_tells_are_the_errors_there_are(form: Format) -> None:
    given = shared()
    found = awq(given, form, clip=True)
    assert found.error == pytest.approx(output_error(found, given, given.inputs), rel=1e-3)
    assert found.plain == pytest.approx(nearest_error(given, form, given.inputs), rel=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("loud", [1.0, 0.0])
def test_it_is_never_worse_on_its_sample(form: Format, loud: float) -> None:
    found = awq(shared(loud=loud), form)
    assert found.error <= found.plain


def test_the_clipping_search_brings_the_output_nearer() -> None:
    given, form = shared(), Format("int4", 64)
    found = awq(given, form, clip=True)
    assert found.error < 0.95 * awq(given, form).error
    groups = (given.inputs / found.scales).double().split(64, dim=1)  # what each group of the stored weight will read
    moments = torch.stack([group.T @ group for group in groups])
    for name, weight in given.weights.items():
        truth = round_to_nearest(weight * found.scales, form, name, clip=True, moments=moments)
        assert torch.equal(found.weights[name].scales, truth.scales)


def test_dead_channels_keep_their_scale() -> None:
    given = shared()
    given.inputs[:, [0, 77]] = 0
    found = awq(given, Format("int4", 32))
    assert found.exponent > 0
    assert found.scales[[0, 77]].tolist() == [1.0, 1.0]


def test_folding_changes_nothing_by_itself() -> None:
    given = shared(dtype=torch.bfloat16)
    scales = awq(given, Format("int4", 32)).scales
    assert float(scales.max() / scales.min()) > 2
    assert given.error(scales, lambda path, inputs, weight: inputs @ weight.T) < 1e-6
    for weight in given.weights.values():  # and a 16-bit weight's product is exact in fp32
        assert torch.equal((weight.float() * scales).double(), weight.double() * scales.double())


def test_scales_are_centred_bounded_and_defined() -> None:
    assert tidy(torch.tensor([4.0, 1.0, 0.0, float("nan"), float("inf")])).tolist() == [2.0, 0.5, 1.0, 1.0, 1.0]
    assert tidy(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    wild = tidy(torch.tensor([1e-20, 1.0, 1e20]))
    assert 9e3 < float(wild[2]) < 1.1e4
    assert 9e-5 < float(wild[0]) < 1.1e-4


@pytest.mark.parametrize(
    ("weights", "inputs", "words"),
    [
        ({}, torch.ones(2, 4), "no weights are given to be scaled"),
        (
            {"q": torch.ones(3, 4), "k": torch.ones(3, 4)},
            torch.ones(0, 4),
            "q, k: the sample of inputs is (0, 4); it must be [rows, in], and not empty; "
            "give a longer calibration text",
        ),
        ({"q": torch.ones(3, 8)}, torch.ones(2, 4), "q: its shape is (3, 8); the inputs are 4 wide"),
    ],
)
def test_what_cannot_be_shared_is_refused(weights: dict[str, torch.Tensor], inputs: torch.Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(words)}$"):
        Shared(weights, inputs)


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(NumericalError, match=r"^q: the inputs hold NaN or infinity; calibrate in a wider dtype$"):
        Shared({"q": torch.ones(3, 4)}, torch.full((2, 4), float("nan")))
    given = shared()
    given.weights["k"][1, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"^k: the weight holds NaN or infinity"):
        awq(given, Format("int4", 32))
