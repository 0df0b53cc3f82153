"""Casts between raw dtypes against torch's, and the search for NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from allotrope.models.dtypes import FLOATS, cast, find_nonfinite

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def carried(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def every_value(tag: str) -> torch.Tensor:
    """All 65,536 values of a 16-bit type; for the wider ones, those and their neighbours and halfway points."""
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    sixteen = torch.cat([halves.view(torch.float16).double(), halves.view(torch.bfloat16).double()])
    if tag in ("fp16", "bf16"):
        return halves.view(TORCH[tag])
    exact = sixteen.to(TORCH[tag])
    infinity = torch.tensor(torch.inf, dtype=exact.dtype)
    middle = (exact + exact.roll(1)) / 2
    near = [torch.nextafter(value, sign * infinity) for value in (exact, middle) for sign in (1, -1)]
    return torch.cat([exact, middle, *near])


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_casts_as_torch_does(source: str, target: str) -> None:
    values = every_value(source)
    got = cast(carried(values), source, target)
    expected = carried(values.to(TORCH[target]))
    if (source, target) in (("fp64", "bf16"), ("fp64", "fp16")):
        # torch goes through fp32 and rounds twice; the exactly rounded value is never further off.
        mine = torch.from_numpy(got.view(np.int16)).view(TORCH[target]).double()
        finite = mine.isfinite() & values.to(TORCH[target]).isfinite()
        off, torch_off = (mine - values).abs(), (values.to(TORCH[target]).double() - values).abs()
        assert bool((off <= torch_off)[finite].all())
        assert bool((mine.isnan() == values.isnan()).all())
        return
    nan = values.isnan().numpy()
    assert got.dtype == expected.dtype
    assert np.array_equal(got[~nan], expected[~nan])
    assert find_nonfinite(got[nan], target) == nan.sum()


def test_fp64_to_bf16_rounds_once() -> None:
    """1 + 2^-8 lies halfway between two bf16; a little more must go up though fp32 cannot see it."""
    values = np.array([1 + 2**-8, 1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, -(1 + 2**-8 + 2**-40)])
    assert cast(values, "fp64", "bf16").tolist() == [0x3F80, 0x3F81, 0x3F80, 0xBF81]


def test_shapes_strides_and_pieces() -> None:
    values = np.arange(300_000, dtype=np.float32).reshape(300, 1000).T
    assert np.array_equal(cast(values, "fp32", "fp64"), values)
    assert cast(values, "fp32", "fp32") is values
    assert cast(np.empty((0, 3), np.float32), "fp32", "bf16").shape == (0, 3)
    assert cast(np.array(1.5, np.float32), "fp32", "bf16").shape == ()
    with pytest.raises(ValueError, match="no cast from int64 to fp32"):
        cast(values, "int64", "fp32")


@pytest.mark.parametrize("tag", FLOATS)
def test_finds_every_nonfinite(tag: str) -> None:
    values = every_value(tag)
    assert find_nonfinite(carried(values), tag) == int((~values.isfinite()).sum()) > 0
    assert find_nonfinite(carried(values[values.isfinite()]), tag) == 0
    plain = torch.ones(200_001, dtype=TORCH[tag])
    plain[[0, 65_535, 65_536, 200_000]] = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan]).to(TORCH[tag])
    assert find_nonfinite(carried(plain), tag) == 4


def test_integers_are_finite() -> None:
    assert find_nonfinite(np.full(3, -1, np.int64), "int64") == 0
