"""GPTQ's layout: each bit where AutoGPTQ puts it, and a word for each tensor that cannot be what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.errors import CheckpointError, UsageError
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.gptq import pack, unpack
from allotrope.models.quantised.parts import Parts
from allotrope.models.quantised.stored import Stored
from tests.quantised_kit import Array, Grid, dequantised, grid, means, reals, same, same_tensors, shuffled
from tests.quantised_writers import gptq as write

CASES = [
    # outputs, inputs, group, bits, symmetric, act-order, layout's offset, scales
    (8, 64, 32, 4, True, False, 1, "fp16"),
    (16, 128, 64, 4, False, False, 1, "fp16"),
    (24, 384, 128, 4, False, False, 0, "bf16"),
    (8, 40, -1, 4, True, False, 1, "fp32"),
    (16, 96, 32, 4, True, True, 1, "fp16"),
    (8, 256, 64, 4, False, True, 0, "fp16"),
    (8, 64, -1, 4, False, True, 1, "fp16"),
    (4, 64, 32, 8, True, False, 1, "fp16"),
    (12, 128, 64, 8, False, True, 1, "bf16"),
    (4, 256, 128, 8, False, False, 0, "fp32"),
    (8, 36, -1, 8, True, False, 0, "fp16"),
]


def case(row: Any) -> tuple[Stored, dict[str, Array], Grid, Grid, Array, list[int]]:
    outputs, inputs, group, bits, symmetric, act_order, less, dtype = row
    groups = 1 if group == -1 else inputs // group
    most, half = (1 << bits) - 1, 1 << bits - 1
    codes = grid(outputs, inputs, 0, most)
    zeros = [[half] * groups for _ in range(outputs)] if symmetric else grid(outputs, groups, less, most, seed=3)
    if not symmetric and less:
        zeros = [[max(1, zero) for zero in points] for points in zeros]
    group_of = shuffled(inputs, groups) if act_order else [i * groups // inputs for i in range(inputs)]
    scales = reals(outputs, groups, dtype)
    stored = Stored("gptq", bits, group, symmetric, desc_act=act_order, zero_offset=less)
    return stored, write(codes, zeros, scales, group_of, bits, less), codes, zeros, scales, group_of


@pytest.mark.parametrize("row", CASES, ids=str)
def test_every_value_is_read_and_written_as_documented(row: Any) -> None:
    stored, tensors, codes, zeros, scales, group_of = case(row)
    found = unpack(Parts("layer", tensors), stored)
    half = 1 << stored.bits - 1
    assert found.number == stored.number
    if stored.symmetric:
        same(found.codes, (np.array(codes) - half).astype(np.int8))
        assert found.zeros is None
    else:
        same(found.codes, np.array(codes, np.uint8))
        assert found.zeros is not None
        same(found.zeros, np.array(zeros, np.uint8))
    same(found.scales, scales)
    assert found.group == (None if len(zeros[0]) == 1 else stored.group)
    in_order = group_of == sorted(group_of)
    assert (found.order is None) is in_order
    if found.order is not None:
        same(found.order, np.array(group_of, np.int32))
    means(found, dequantised(codes, zeros, scales, group_of, np.float32), np.float32)
    means(found, dequantised(codes, zeros, scales, group_of, np.float64), np.float64)
    same_tensors(pack(found, stored), tensors)


def test_one_word_by_hand() -> None:
    """0x76543210 holds inputs 0 to 7 with codes 0 to 7; a stored zero of 7 is 8, so that they count from −8."""
    words = np.array([[0x76543210] * 8, [-1] * 8], np.int32)
    tensors = {"qweight": words, "qzeros": np.array([[0x77777777]], np.int32), "scales": np.full((1, 8), 2, np.float16)}
    found = unpack(Parts("layer", tensors), Stored("gptq", 4, -1, True, zero_offset=1))
    assert found.codes[3].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1, 7, 7, 7, 7, 7, 7, 7, 7]
    assert found.dequantised()[3, :2].tolist() == [-16.0, -14.0]


@given(st.data())
def test_writing_and_reading_are_inverses(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([4, 8]))
    symmetric, desc_act, less = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.sampled_from([0, 1]))
    groups, size, eights = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([8, 16, 32])), 8
    outputs, inputs = eights * data.draw(st.integers(1, 3)), groups * size
    seed = data.draw(st.integers(0, 2**32))
    stored = Stored("gptq", bits, size if groups > 1 else -1, symmetric, desc_act=desc_act, zero_offset=less)
    low = -(1 << bits - 1) if symmetric else 0
    kind = np.int8 if symmetric else np.uint8
    codes = np.array(grid(outputs, inputs, low, low + (1 << bits) - 1, seed), kind)
    zeros = None if symmetric else np.array(grid(outputs, groups, less, (1 << bits) - 1, seed), kind)
    order = np.array(shuffled(inputs, groups, seed), np.int32) if desc_act and groups > 1 else None
    if order is not None and (np.diff(order) >= 0).all():
        order = None
    given_codes = Codes(
        *(stored.number, codes, reals(outputs, groups, seed=seed), zeros), None if groups == 1 else size, order
    )
    back = unpack(Parts("layer", pack(given_codes, stored)), stored)
    same(back.codes, codes)
    same(back.scales, given_codes.scales)
    assert (back.zeros is None, back.order is None, back.group) == (zeros is None, order is None, given_codes.group)
    if zeros is not None and back.zeros is not None:
        same(back.zeros, zeros)
    if order is not None and back.order is not None:
        same(back.order, order)


def test_an_index_may_be_missing_only_where_inputs_are_in_order() -> None:
    stored, tensors, codes, *_ = case(CASES[0])
    del tensors["g_idx"]
    assert unpack(Parts("layer", tensors), stored).codes.shape == (len(codes), len(codes[0]))
    stored, tensors, *_ = case(CASES[4])
    del tensors["g_idx"]
    with pytest.raises(CheckpointError, match=r"^here: layer\.g_idx is missing; download"):
        unpack(Parts("layer", tensors, "here"), stored)


def change(tensor: Array, at: Any, value: Any) -> Array:
    changed = tensor.copy()
    changed[at] = value
    return changed


SYMMETRIC, ASYMMETRIC, ORDERED = CASES[0], CASES[1], CASES[4]
WRONG = [
    (SYMMETRIC, "qweight", lambda t: None, "layer.qweight is missing"),
    (SYMMETRIC, "qzeros", lambda t: None, "layer.qzeros is missing"),
    (SYMMETRIC, "scales", lambda t: None, "layer.scales is missing"),
    (SYMMETRIC, "qweight", lambda t: t.astype(np.int64), "layer.qweight is int64, not int32"),
    (SYMMETRIC, "qweight", lambda t: t[0], "layer.qweight has shape [8], but should be a matrix"),
    (SYMMETRIC, "qweight", lambda t: t[:0], "layer.qweight has shape [0, 8], but should be a matrix"),
    (SYMMETRIC, "qweight", lambda t: t[:, :7], "layer.qweight has 7 outputs, which is no multiple of 8"),
    (SYMMETRIC, "qweight", lambda t: t[:5], "layer.qweight has 40 inputs, which groups of 32 do not divide"),
    (SYMMETRIC, "qzeros", lambda t: t[:1], "layer.qzeros has shape [1, 1], but should have [2, 1]"),
    (SYMMETRIC, "qzeros", lambda t: t.astype(np.int8), "layer.qzeros is int8, not int32"),
    (
        SYMMETRIC,
        "qzeros",
        lambda t: t + 1,
        "layer.qzeros holds zero points other than 8, but the config says symmetric",
    ),
    (SYMMETRIC, "scales", lambda t: t.T, "layer.scales has shape [8, 2], but should have [2, 8]"),
    (SYMMETRIC, "scales", lambda t: t.astype(np.int32), "layer.scales is int32, not fp16 or bf16 or fp32"),
    (SYMMETRIC, "scales", lambda t: change(t, (1, 2), np.nan), "layer.scales holds 1 values that are NaN or infinite"),
    (SYMMETRIC, "scales", lambda t: change(t, 0, np.inf), "layer.scales holds 8 values that are NaN or infinite"),
    (
        SYMMETRIC,
        "g_idx",
        lambda t: t[::-1].copy(),
        "layer.g_idx puts inputs out of order, but the config says that they",
    ),
    (
        ASYMMETRIC,
        "qzeros",
        lambda t: t | 0xF0,
        "layer.qzeros holds 15, which in GPTQ's first layout means different zeros",
    ),
    (ORDERED, "g_idx", lambda t: change(t, 5, 3), "layer.g_idx names groups 0 to 3, but there are 3"),
    (ORDERED, "g_idx", lambda t: change(t, 5, -1), "layer.g_idx names groups -1 to 2, but there are 3"),
    (
        ORDERED,
        "g_idx",
        lambda t: change(t, slice(None), t[::-1].min()),
        "layer.g_idx gives one group 0 inputs and another 96",
    ),
    (ORDERED, "g_idx", lambda t: t[1:], "layer.g_idx has shape [95], but should have [96]"),
    (ORDERED, "g_idx", lambda t: t.astype(np.float32), "layer.g_idx is float32, not int32 or int64"),
]


@pytest.mark.parametrize(("row", "part", "spoil", "words"), WRONG, ids=range(len(WRONG)))
def test_a_tensor_that_cannot_be_is_named(row: Any, part: str, spoil: Any, words: str) -> None:
    stored, tensors, *_ = case(row)
    spoilt = spoil(tensors.pop(part))
    if spoilt is not None:
        tensors[part] = spoilt
    with pytest.raises(CheckpointError) as caught:
        unpack(Parts("layer", tensors, "here"), stored)
    assert str(caught.value).startswith(f"here: {words}")
    assert str(caught.value).endswith("; download the checkpoint again, or correct its quantization_config")


def test_what_a_layout_cannot_hold_is_not_written() -> None:
    stored, tensors, *_ = case(ASYMMETRIC)
    found = unpack(Parts("layer", tensors), stored)
    assert found.zeros is not None

    def refusal(codes: Codes, stored: Stored) -> str:
        with pytest.raises(UsageError) as caught:
            pack(codes, stored)
        return str(caught.value)

    nothing = Codes("uint4", found.codes, found.scales, np.zeros_like(found.zeros), found.group)
    assert refusal(nothing, stored) == "GPTQ's first layout cannot store a zero point of 0; write gptq_v2"
    second = Stored("gptq", 4, 64, False)
    assert not pack(nothing, second)["qzeros"].any()
    same(pack(Codes("uint4", found.codes, found.scales, None, 64), second)["qzeros"], pack(nothing, second)["qzeros"])
    assert refusal(found, Stored("gptq", 4, 64, True)).startswith(
        "the codes are uint4; these are to be written as gptq"
    )
    assert refusal(found, Stored("gptq", 4, 32, False)).startswith("the codes have 2 groups of 64; these are to be")
    odd = Codes("uint4", found.codes[:3], found.scales[:3], None, 64)
    assert refusal(odd, second) == "a GPTQ matrix of 3 × 128 does not fill its words; leave it as it is"
    ordered = Codes("uint4", found.codes, found.scales, None, 64, np.array(shuffled(128, 2), np.int32))
    assert refusal(ordered, second).startswith("the codes' inputs are out of order, but the layout has no index; these")
