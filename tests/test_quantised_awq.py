"""AutoAWQ's GEMM layout: eight outputs in a word, in their own order, each bit where the format puts it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.errors import CheckpointError, UsageError
from allotrope.models.quantised.awq import pack, unpack
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.parts import Parts
from allotrope.models.quantised.stored import Stored
from tests.quantised_kit import Array, Grid, dequantised, grid, means, reals, same, same_tensors
from tests.quantised_writers import awq as write

CASES = [(8, 64, 32, "fp16"), (24, 128, 64, "fp16"), (16, 384, 128, "bf16"), (32, 36, -1, "fp16"), (8, 64, 64, "fp32")]


def case(row: Any) -> tuple[Stored, dict[str, Array], Grid, Grid, Array]:
    outputs, inputs, group, dtype = row
    groups = 1 if group == -1 else inputs // group
    codes, zeros = grid(outputs, inputs, 0, 15), grid(outputs, groups, 0, 15, seed=3)
    scales = reals(outputs, groups, dtype)
    return Stored("awq", 4, group, False), write(codes, zeros, scales), codes, zeros, scales


@pytest.mark.parametrize("row", CASES, ids=str)
def test_every_value_is_read_and_written_as_documented(row: Any) -> None:
    stored, tensors, codes, zeros, scales = case(row)
    found = unpack(Parts("layer", tensors), stored)
    assert (found.number, found.order) == ("uint4", None)
    assert found.group == (None if len(zeros[0]) == 1 else stored.group)
    same(found.codes, np.array(codes, np.uint8))
    assert found.zeros is not None
    same(found.zeros, np.array(zeros, np.uint8))
    same(found.scales, scales)
    group_of = [i * len(zeros[0]) // len(codes[0]) for i in range(len(codes[0]))]
    means(found, dequantised(codes, zeros, scales, group_of, np.float32), np.float32)
    means(found, dequantised(codes, zeros, scales, group_of, np.float64), np.float64)
    same_tensors(pack(found, stored), tensors)


def test_one_word_by_hand() -> None:
    """AutoAWQ's map: from the lowest four bits on, a word holds outputs 0 2 4 6 1 3 5 7."""
    tensors = {
        "qweight": np.array([[0x75316420]], np.int32),
        "qzeros": np.array([[0x10000002]], np.int32),
        "scales": np.full((1, 8), 0.5, np.float16),
    }
    found = unpack(Parts("layer", tensors), Stored("awq", 4, -1, False))
    assert found.codes[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.dequantised()[:, 0].tolist() == [-1.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]


@given(st.data())
def test_writing_and_reading_are_inverses(data: st.DataObject) -> None:
    outputs, groups = 8 * data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    size, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 2**32))
    stored = Stored("awq", 4, size if groups > 1 else -1, False)
    codes = np.array(grid(outputs, groups * size, 0, 15, seed), np.uint8)
    zeros = np.array(grid(outputs, groups, 0, 15, seed), np.uint8)
    given_codes = Codes("uint4", codes, reals(outputs, groups, seed=seed), zeros, size if groups > 1 else None)
    back = unpack(Parts("layer", pack(given_codes, stored)), stored)
    same(back.codes, codes)
    assert back.zeros is not None
    same(back.zeros, zeros)
    same(back.scales, given_codes.scales)
    assert back.group == given_codes.group


def spoilt(tensor: Array, value: Any) -> Array:
    changed = tensor.copy()
    changed[1, 2] = value
    return changed


WRONG = [
    ("qweight", lambda t: None, "layer.qweight is missing"),
    ("qzeros", lambda t: None, "layer.qzeros is missing"),
    ("scales", lambda t: None, "layer.scales is missing"),
    ("qweight", lambda t: t.astype(np.int16), "layer.qweight is int16, not int32"),
    ("qweight", lambda t: t[:, 0], "layer.qweight has shape [64], but should be a matrix"),
    ("qweight", lambda t: t[:60], "layer.qweight has 60 inputs, which groups of 32 do not divide"),
    ("qweight", lambda t: np.hstack([t, t]), "layer.scales has shape [2, 8], but should have [2, 16]"),
    ("qzeros", lambda t: t.T, "layer.qzeros has shape [1, 2], but should have [2, 1]"),
    ("scales", lambda t: t.T, "layer.scales has shape [8, 2], but should have [2, 8]"),
    ("scales", lambda t: spoilt(t, -np.inf), "layer.scales holds 1 values that are NaN or infinite"),
]


@pytest.mark.parametrize(("part", "spoil", "words"), WRONG, ids=range(len(WRONG)))
def test_a_tensor_that_cannot_be_is_named(part: str, spoil: Any, words: str) -> None:
    stored, tensors, *_ = case(CASES[0])
    wrong = spoil(tensors.pop(part))
    if wrong is not None:
        tensors[part] = wrong
    with pytest.raises(CheckpointError) as caught:
        unpack(Parts("layer", tensors, "here"), stored)
    assert str(caught.value).startswith(f"here: {words}; download the checkpoint again, or")


def test_outputs_that_fill_no_word_are_not_written() -> None:
    stored, tensors, *_ = case(CASES[0])
    found = unpack(Parts("layer", tensors), stored)
    with pytest.raises(UsageError, match="an AWQ matrix of 5 outputs does not fill its words; leave it as it is"):
        pack(Codes("uint4", found.codes[:5], found.scales[:5], None, 32), stored)
    without = pack(Codes("uint4", found.codes, found.scales, None, 32), stored)
    assert not without["qzeros"].any() and without["qzeros"].shape == (2, 1)
    with pytest.raises(UsageError, match="the codes are uint4; these are to be written as compressed-tensors weights"):
        pack(found, Stored("compressed-tensors", 4, 32, True))
