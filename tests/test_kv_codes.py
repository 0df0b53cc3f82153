"""Keys and values in fewer bits: rows, codes and scales against a plain twin, and what is said of what cannot be."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.kv_codes import coded, decoded, fake, parts, widened
from allotrope.ops.kv_rows import CODED, FORMS, NARROW, item_bytes, misfit, row_bytes, row_width, scales_at

CPU = Device("cpu", "test", "x86_64", 2, 1 << 34)
E4M3 = sorted(
    {sign * value for sign in (-1, 1) for value in (m / 8 * 2.0**-6 for m in range(8))}
    | {sign * (1 + m / 8) * 2.0**e for sign in (-1, 1) for e in range(-6, 9) for m in range(8) if (e, m) != (8, 7)}
)
by_form = pytest.mark.parametrize("form", NARROW)
by_code = pytest.mark.parametrize("form", CODED)


def twin(head: list[float], form: str) -> tuple[list[float], float]:
    """Codes' values and scale of one head, number by number in fp32, straight from the definition."""
    top = np.float32({"int8": 127, "fp8": 448}[form])
    if not all(map(math.isfinite, head)):
        return [0.0] * len(head), math.nan
    scale = max(np.float32(max(map(abs, head))) / top, np.finfo(np.float32).tiny)
    found = []
    for value in head:
        step = float(np.clip(np.float32(value) / np.float32(scale), -top, top))
        if form == "int8":
            found.append(float(round(step)))  # Python rounds ties to even
            continue
        nearest = min(abs(step - code) for code in E4M3)
        ties = [code for code in E4M3 if abs(step - code) == nearest]
        found.append(min(ties, key=lambda code: (E4M3.index(code) - E4M3.index(0.0)) % 2))
    return found, float(scale)


def values(seed: int, tokens: int, heads: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Loud and quiet heads, some all zero."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(tokens, heads, dim, generator=random) * 10 ** (
        torch.rand(tokens, heads, 1, generator=random) * 8 - 6
    )
    found[::5, 0] = 0
    return found.flatten(1).to(dtype)


@by_code
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    dim=st.sampled_from([1, 2, 3, 5, 8, 80]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_codes_are_the_twins(form: str, tokens: int, heads: int, dim: int, dtype: torch.dtype, seed: int) -> None:
    given = values(seed, tokens, heads, dim, dtype)
    given[0, -1] = [torch.nan, torch.inf, -torch.inf, 1.0][seed % 4]
    rows = coded(given, heads, form)
    assert rows.dtype == torch.uint8 and rows.shape == (tokens, row_width(form, heads, dim))
    codes, scales = parts(rows, heads, dim, form)
    assert scales is not None
    for token in range(tokens):
        for head in range(heads):
            expected, scale = twin(given[token].view(heads, dim)[head].tolist(), form)
            assert codes[token, head].float().tolist() == expected
            assert scales[token, head].item() == scale or (math.isnan(scale) and scales[token, head].isnan())
    assert not rows[:, heads * dim : scales_at(heads, dim)].any()


@by_code
def test_a_round_trip_errs_by_half_a_step_and_the_second_one_by_nothing(form: str) -> None:
    given = values(1, 200, 3, 80)
    once = fake(given, 3, form)
    peak = given.view(200, 3, 80).abs().amax(-1, keepdim=True)
    step = peak / 127 if form == "int8" else torch.maximum(given.view(200, 3, 80).abs() / 8, peak / 448 * 2.0**-9)
    assert ((once - given).view(200, 3, 80).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.equal(coded(once, 3, form)[:, :240], coded(given, 3, form)[:, :240])
    assert torch.equal(fake(torch.zeros(4, 6), 2, form), torch.zeros(4, 6))


@by_code
def test_what_is_not_finite_spoils_its_own_head_alone(form: str) -> None:
    given = values(2, 4, 3, 5)
    clean = fake(given, 3, form)
    given[1, 7], given[2, 0] = torch.inf, torch.nan
    spoilt = fake(given, 3, form)
    assert spoilt[1, 5:10].isnan().all() and spoilt[2, :5].isnan().all()
    clean[1, 5:10] = clean[2, :5] = torch.nan
    assert torch.equal(spoilt.nan_to_num(9e9), clean.nan_to_num(9e9))


@by_code
def test_the_largest_and_the_smallest_numbers(form: str) -> None:
    most, least = torch.finfo(torch.float32).max, 1e-45
    assert torch.isclose(fake(torch.tensor([[most, -most / 2]]), 1, form)[0, 1], torch.tensor(-most / 2), rtol=0.01)
    assert fake(torch.tensor([[least, 0.0]]), 1, form).abs().max() <= 2.0**-126
    half = torch.tensor([[65504.0, -3.0]], dtype=torch.float16)
    assert fake(half, 1, form)[0, 0] == 65504.0


def test_halves_are_numpys_and_stay_finite() -> None:
    """Numbers of every exponent, subnormal ones and ties among them, and what fp16 cannot hold."""
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    ties = torch.arange(0, 1 << 15, dtype=torch.int16).view(torch.float16).float()
    edges = torch.tensor([0.0, -0.0, 65504.0, 65519.9, -65520.0, 7e4, 3e38, 2.0**-25, -1e-45])
    given = torch.cat((bits.view(torch.float32), (ties[:-1] + ties[1:]) / 2, edges))
    given = given[: len(given) // 4 * 4].view(-1, 4)
    found, given = fake(given, 2, "fp16").numpy(), given.numpy()
    finite = np.isfinite(given)
    assert np.isnan(found[~finite]).all() and np.isfinite(found[finite]).all()
    expected = np.clip(given[finite], -65504, 65504).astype(np.float16).astype(np.float32)
    assert (found[finite].view(np.int32) == expected.view(np.int32)).all()


def test_every_code_is_widened_to_its_value() -> None:
    """Strided as in a cache's rows, too; the two codes of e4m3 that are NaN are never written."""
    every = torch.arange(256, dtype=torch.uint8).view(4, 64)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        codes = every.view(dtype)
        known = ~codes.float().isnan()
        assert known.sum() == (256 if dtype == torch.int8 else 254)
        assert torch.equal(widened(codes)[known], codes.float()[known])
        assert torch.equal(widened(codes[:, 3:9].T), widened(codes)[:, 3:9].T)


@by_code
def test_fp64_is_computed_in_fp64(form: str) -> None:
    rows = coded(values(3, 6, 2, 8), 2, form)
    codes, scales = parts(rows, 2, 8, form)
    assert scales is not None
    assert torch.equal(decoded(rows, 2, 8, form, torch.float64), codes.double() * scales.double()[..., None])


@pytest.mark.parametrize(("heads", "dim", "size"), [(1, 1, 8), (3, 5, 28), (2, 64, 136), (5, 80, 420)])
def test_a_row_is_as_long_as_the_layout_says(heads: int, dim: int, size: int) -> None:
    assert row_width("fp16", heads, dim) == row_bytes("fp16", heads, dim, "fp32") == 2 * heads * dim
    for form in CODED:
        assert row_width(form, heads, dim) == row_bytes(form, heads, dim, "bf16") == size
        assert item_bytes(form, "fp32") == 1
    assert row_bytes("compute", heads, dim, "bf16") == 2 * heads * dim


def test_misfits_are_said_in_words() -> None:
    assert all(misfit(form, 3, 5, row_width(form, 3, 5)) is None for form in FORMS)
    assert misfit("int8", 3, 5, 15) == "the cache's rows are 15 wide; 3 heads of 5 as int8 take 28"
    assert misfit("compute", 3, 5, 28) == "the cache's rows are 28 wide; 3 heads of 5 as compute take 15"
    assert misfit("int4", 3, 5, 15) == "KV format 'int4' is unknown; there are compute, int8, fp8, fp16"


def write(form: str, rows: int = 37, heads: int = 3, dim: int = 5, page_size: int = 7) -> Problem:
    axes = {"rows": rows, "kv_width": heads * dim, "cache_width": row_width(form, heads, dim)}
    axes |= {"pages": 9, "page_size": page_size}
    return Problem("kv_write", axes, {"kv": form, "kv_heads": heads}, "fp32")


@by_form
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("page_size", [1, 7, 64])
def test_writing_is_bit_for_bit_the_reference(form: str, dtype: str, page_size: int) -> None:
    tactic = registry.tactic("kv_write", "torch")
    for heads, dim in ((3, 5), (1, 80), (4, 16), (5, 1)):
        posed = dataclasses.replace(write(form, heads=heads, dim=dim, page_size=page_size), dtype=dtype)
        assert check.check(tactic, posed, CPU, seed=heads).reason is None
        assert check.check_rows(tactic, posed, CPU, seed=heads) is None


@by_form
def test_keys_beside_values_are_written_at_once_and_alike(form: str) -> None:
    contract, posed = registry.contract("kv_write"), write(form, heads=2, dim=6)
    ins = contract.make_inputs(posed, 1)
    apart = contract.reference(ins, posed.params)
    caches = torch.stack((ins["k_cache"], ins["v_cache"]))
    both = torch.cat((ins["k"], ins["v"]), 1)
    joint = {"k_cache": caches[0], "v_cache": caches[1]}
    given = {**ins, **joint, "k": both[:, :12], "v": both[:, 12:]}
    registry.tactic("kv_write", "torch").run(joint, given, posed.params, None)
    assert all(torch.equal(joint[name], apart[name]) for name in joint)


def test_a_write_says_why_not() -> None:
    tactic, posed = registry.tactic("kv_write", "torch"), write("int8")
    uneven = dataclasses.replace(posed, params={"kv": "int8", "kv_heads": 4})
    assert tactic.why_not(uneven, CPU) == "15 channels cannot be 4 heads"
    wide = dataclasses.replace(posed, axes={**posed.axes, "cache_width": 15})
    assert "rows are 15 wide" in str(tactic.why_not(wide, CPU))
    assert tactic.why_not(posed, CPU) is None


def test_a_write_costs_what_it_moves() -> None:
    cost = registry.contract("kv_write").cost
    assert cost(write("int8")).bytes == 37 * (2 * (15 * 4 + 28) + 8)
    assert cost(write("compute")).bytes == 37 * (2 * (15 * 4 + 15 * 4) + 8)
