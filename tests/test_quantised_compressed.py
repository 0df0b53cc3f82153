"""compressed-tensors' layouts: packed, in bytes and in e4m3, each bit where the library puts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotrope.errors import CheckpointError, UsageError
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.compressed import pack, unpack
from allotrope.models.quantised.parts import Parts
from allotrope.models.quantised.stored import Stored
from tests.quantised_kit import Array, Grid, dequantised, grid, means, reals, same, same_tensors, shuffled
from tests.quantised_writers import compressed as write

CT = "compressed-tensors"


CASES = [
    # form, bits, outputs, inputs, group, symmetric, act-order, scales
    ("pack-quantized", 4, 8, 64, 32, True, False, "bf16"),
    ("pack-quantized", 4, 12, 128, 64, False, False, "fp16"),
    ("pack-quantized", 4, 11, 384, 128, False, True, "fp16"),
    ("pack-quantized", 4, 5, 37, -1, True, False, "fp32"),
    ("pack-quantized", 8, 7, 96, 32, False, True, "bf16"),
    ("pack-quantized", 8, 6, 45, -1, False, False, "fp16"),
    ("int-quantized", 8, 9, 70, -1, True, False, "bf16"),
    ("int-quantized", 8, 4, 128, 64, False, True, "fp16"),
    ("int-quantized", 4, 4, 64, 32, False, False, "fp16"),
    ("naive-quantized", 8, 6, 128, 128, True, False, "fp32"),
    ("int-quantized", 8, 3, 20, 0, True, False, "fp32"),  # 0: one scale per tensor
    ("int-quantized", 8, 3, 20, 0, False, False, "fp32"),
]


def case(row: Any) -> tuple[Stored, dict[str, Array], Grid, Grid, Array, list[int]]:
    form, bits, outputs, inputs, group, symmetric, act_order, dtype = row
    groups = 1 if group < 1 else inputs // group
    half, floating = 1 << bits - 1, form == "float-quantized"
    codes, zeros = grid(outputs, inputs, -half, half - 1), grid(outputs, groups, -half, half - 1, seed=3)
    if group == 0:
        zeros = [[5]] * outputs
    if symmetric:
        zeros = [[0] * groups] * outputs
    scales = reals(1, 1, dtype).repeat(outputs, axis=0) if group == 0 else reals(outputs, groups, dtype)
    group_of = shuffled(inputs, groups) if act_order else [i * groups // inputs for i in range(inputs)]
    if floating:
        codes = [[abs(code) % 127 for code in row] for row in codes]
    stored = Stored(*(CT, bits, group or -1, symmetric, act_order), form=form, floating=floating, per_tensor=group == 0)
    return stored, write(stored, codes, zeros, scales, group_of), codes, zeros, scales, group_of


@pytest.mark.parametrize("row", CASES, ids=str)
def test_every_value_is_read_and_written_as_documented(row: Any) -> None:
    stored, tensors, codes, zeros, scales, group_of = case(row)
    found = unpack(Parts("layer", tensors), stored)
    assert found.number == f"int{stored.bits}"
    same(found.codes, np.array(codes, np.int8))
    same(found.scales, scales)
    if stored.symmetric:
        assert found.zeros is None
    else:
        assert found.zeros is not None
        same(found.zeros, np.array(zeros, np.int8))
    assert found.group == (None if len(zeros[0]) == 1 else stored.group)
    assert (found.order is not None) is stored.desc_act
    if found.order is not None:
        same(found.order, np.array(group_of, np.int32))
    means(found, dequantised(codes, zeros, scales, group_of, np.float32), np.float32)
    means(found, dequantised(codes, zeros, scales, group_of, np.float64), np.float64)
    same_tensors(pack(found, stored), tensors)


def test_one_word_by_hand() -> None:
    """The library's own example: [1, 2] in 8 bits is 33409, 129 + 256 · 130."""
    tensors = {
        "weight_packed": np.array([[33409]], np.int32),
        "weight_shape": np.array([1, 2], np.int32),
        "weight_scale": np.array([[0.25]], np.float16),
    }
    found = unpack(Parts("layer", tensors), Stored(CT, 8, -1, True, form="pack-quantized"))
    assert found.dequantised().tolist() == [[0.25, 0.5]]


@pytest.mark.parametrize("per_tensor", [True, False])
def test_every_e4m3_byte_has_its_value(per_tensor: bool) -> None:
    """Against PyTorch's own type; 0x7f and 0xff are NaN, and refused."""
    codes = np.array([byte for byte in range(256) if byte not in (0x7F, 0xFF)], np.uint8).reshape(2, 127)
    scales = np.array([0.5] if per_tensor else [[0.5], [3.0]], np.float32)
    stored = Stored(CT, 8, -1, True, form="float-quantized", floating=True, per_tensor=per_tensor)
    tensors = {"weight": codes, "weight_scale": scales}
    found = unpack(Parts("layer", tensors), stored)
    assert found.number == "fp8" and found.scales.shape == (2, 1)
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    same(found.dequantised(), values * scales.reshape(-1, 1))
    same(found.dequantised("fp64"), values.astype(np.float64) * scales.reshape(-1, 1))
    for name, tensor in pack(found, stored).items():
        same(tensor, tensors[name])
    codes[1, 3] = 0xFF
    with pytest.raises(CheckpointError, match=r"layer\.weight holds 1 values that are NaN"):
        unpack(Parts("layer", tensors), stored)


def test_what_older_versions_wrote_is_read() -> None:
    """Zero points as bytes beside packed weights, zeros that a symmetric weight need not have, and scalars."""
    stored, tensors, _, zeros, *_ = case(CASES[1])
    found = unpack(Parts("layer", {**tensors, "weight_zero_point": np.array(zeros, np.int8)}), stored)
    assert found.zeros is not None
    same(found.zeros, np.array(zeros, np.int8))
    stored, tensors, *_ = case(CASES[0])
    assert unpack(Parts("layer", {**tensors, "weight_zero_point": np.zeros((8, 2), np.int8)}), stored).zeros is None
    stored, tensors, *_ = case(CASES[-1])
    scalars = {name: tensors[name].reshape(()) for name in ("weight_scale", "weight_zero_point")}
    same(unpack(Parts("layer", {**tensors, **scalars}), stored).scales, unpack(Parts("layer", tensors), stored).scales)


@given(st.data())
def test_writing_and_reading_are_inverses(data: st.DataObject) -> None:
    bits, form = data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from(["pack-quantized", "int-quantized"]))
    symmetric, desc_act = data.draw(st.booleans()), data.draw(st.booleans())
    outputs, groups, size = data.draw(st.integers(1, 19)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 21))
    seed, half = data.draw(st.integers(0, 2**32)), 1 << bits - 1
    stored = Stored(CT, bits, size if groups > 1 else -1, symmetric, desc_act=desc_act, form=form)
    codes = np.array(grid(outputs, groups * size, -half, half - 1, seed), np.int8)
    zeros = None if symmetric else np.array(grid(outputs, groups, -half, half - 1, seed), np.int8)
    order = np.array(shuffled(groups * size, groups, seed), np.int32) if desc_act else None
    if order is not None and (np.diff(order) >= 0).all():
        order = None
    scales = reals(outputs, groups, seed=seed)
    made = Codes(stored.number, codes, scales, zeros, size if groups > 1 else None, order)
    back = unpack(Parts("layer", pack(made, stored)), stored)
    same(back.codes, codes)
    same(back.scales, scales)
    assert (back.zeros is None, back.order is None, back.group) == (zeros is None, order is None, made.group)
    if zeros is not None and back.zeros is not None:
        same(back.zeros, zeros)
    if order is not None and back.order is not None:
        same(back.order, order)


PACKED, POINTS, ORDERED, BYTES, FOURS, TENSOR = (CASES[n] for n in (0, 1, 2, 6, 8, 10))
FLOATS = ("float-quantized", 8, 4, 16, -1, True, False, "bf16")
WRONG = [
    (PACKED, "weight_packed", lambda t: None, "weight_packed is missing"),
    (PACKED, "weight_shape", lambda t: None, "weight_shape is missing"),
    (PACKED, "weight_scale", lambda t: None, "weight_scale is missing"),
    (POINTS, "weight_zero_point", lambda t: None, "weight_zero_point is missing"),
    (ORDERED, "weight_g_idx", lambda t: None, "weight_g_idx is missing"),
    (BYTES, "weight", lambda t: None, "weight is missing"),
    (PACKED, "weight_packed", lambda t: t.astype(np.int64), "weight_packed is int64, not int32"),
    (
        *(PACKED, "weight_packed", lambda t: t[:, 1:]),
        "weight_packed has shape [8, 7], which cannot hold weight_shape's [8, 64] in 4 bits",
    ),
    (
        *(PACKED, "weight_shape", lambda t: -t),
        "weight_packed has shape [8, 8], which cannot hold weight_shape's [-8, -64] in 4 bits",
    ),
    (PACKED, "weight_shape", lambda t: t[:1], "weight_shape has shape [1], but should have [2]"),
    (PACKED, "weight_shape", lambda t: t - [0, 4], "weight_packed has 60 inputs, which groups of 32 do not divide"),
    (PACKED, "weight_scale", lambda t: t.T, "weight_scale has shape [2, 8], but should have [8, 2]"),
    (PACKED, "weight_scale", lambda t: t | 0x7F80, "weight_scale holds 16 values that are NaN or infinite"),
    (PACKED, "weight_scale", lambda t: t.view(np.int16), "weight_scale is int16, not fp16 or bf16 or fp32"),
    (POINTS, "weight_zero_point", lambda t: t[:1], "weight_zero_point has shape [1, 2], but should have [2, 2]"),
    (POINTS, "weight_zero_point", lambda t: t.astype(np.int8)[:, :1], "weight_zero_point has shape [2, 1], but should"),
    (POINTS, "weight_zero_point", lambda t: t.astype(np.int16), "weight_zero_point is int16, not int32 or int8"),
    (ORDERED, "weight_g_idx", lambda t: t * 0 - 1, "weight_g_idx names groups -1 to -1, but there are 3"),
    (ORDERED, "weight_g_idx", lambda t: t // 2, "weight_g_idx gives one group 0 inputs and another 256"),
    (BYTES, "weight", lambda t: t.view(np.uint8), "weight is uint8, not int8"),
    (BYTES, "weight", lambda t: t[0], "weight has shape [70], but should be a matrix"),
    (FLOATS, "weight", lambda t: t.view(np.int8), "weight is int8, not fp8"),
    (FOURS, "weight", lambda t: t + np.int8(1), "weight holds -7 to 8, which are no 4-bit numbers"),
    (FOURS, "weight_zero_point", lambda t: t - np.int8(1), "weight_zero_point holds -9 to 6, which are no 4-bit"),
    (TENSOR, "weight_scale", lambda t: t.repeat(3), "weight_scale has shape [3], but should have [1]"),
]


@pytest.mark.parametrize(("row", "part", "spoil", "words"), WRONG, ids=range(len(WRONG)))
def test_a_tensor_that_cannot_be_is_named(row: Any, part: str, spoil: Any, words: str) -> None:
    stored, tensors, *_ = case(row)
    wrong = spoil(tensors.pop(part))
    if wrong is not None:
        tensors[part] = wrong
    with pytest.raises(CheckpointError) as caught:
        unpack(Parts("layer", tensors, "here"), stored)
    assert str(caught.value).startswith(f"here: layer.{words}")
    assert str(caught.value).endswith("; download the checkpoint again, or correct its quantization_config")


def test_zero_points_of_a_symmetric_weight_must_be_zero() -> None:
    stored, tensors, *_ = case(PACKED)
    tensors["weight_zero_point"] = np.full((8, 2), 1, np.int8)
    with pytest.raises(CheckpointError, match=r"layer\.weight_zero_point is not zero, but the config says symmetric"):
        unpack(Parts("layer", tensors), stored)


def test_what_a_layout_cannot_hold_is_not_written() -> None:
    stored, tensors, *_ = case(CASES[-1])
    found = unpack(Parts("layer", tensors), stored)
    scales, zeros = found.scales.copy(), np.array([[5], [5], [4]], np.int8)
    scales[2] *= 2
    for made, words in (
        (Codes("int8", found.codes, scales, found.zeros, None), "the codes' scales differ; these are to be written as"),
        (Codes("int8", found.codes, found.scales, zeros, None), "the codes' zero points differ; these are to be"),
    ):
        with pytest.raises(UsageError, match=words):
            pack(made, stored)
    with pytest.raises(UsageError, match="the codes have zero points, but a symmetric layout has none; these are to"):
        pack(found, Stored(CT, 8, -1, True, form="int-quantized"))


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"codes": np.zeros(4, np.int8)}, r"codes of shape \[4\] are no matrix"),
    ({"codes": np.full((2, 4), 8, np.int8)}, "codes are no int4"),
    ({"codes": np.zeros((2, 4), np.uint8)}, "codes are no int4"),
    ({"number": "fp8", "codes": np.full((2, 4), 0x7F, np.uint8)}, "codes hold NaN"),
    ({"group": 3}, "groups of 3 do not divide 4 inputs"),
    ({"group": 2}, r"scales have shape \[2, 1\]"),
    ({"scales": np.full((2, 1), np.nan, np.float16)}, "scales are not finite"),
    ({"scales": np.ones((2, 1), np.int32)}, "scales are int32"),
    ({"zeros": np.zeros((1, 2), np.int8)}, r"zeros have shape \[1, 2\]"),
    ({"zeros": np.full((2, 1), -9, np.int8)}, "zeros are no int4"),
    ({"order": np.zeros(4, np.int64)}, r"the order has shape \[4\]"),
    ({"group": 2, "scales": np.ones((2, 2), np.float16), "order": np.array([0, 0, 0, 1], np.int32)}, "another 3"),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=range(len(BROKEN)))
def test_codes_that_do_not_fit_together_are_never_made(changes: dict[str, Any], words: str) -> None:
    whole = {"number": "int4", "codes": np.zeros((2, 4), np.int8), "scales": np.ones((2, 1), np.float16)}
    assert Codes(**{**whole, "zeros": None, "group": None}).scale_dtype == "fp16"
    with pytest.raises(ValueError, match=words):
        Codes(**{**whole, "zeros": None, "group": None, **changes})
    with pytest.raises(ValueError, match="no dequantising to fp16"):
        Codes(**{**whole, "zeros": None, "group": None}).dequantised("fp16")
