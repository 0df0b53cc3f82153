"""Whose each tensor of a quantised folder is: none is dropped, none is missing, and the config is not contradicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from allotrope.errors import CheckpointError
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.modules import LAYOUTS, read, split
from allotrope.models.quantised.stored import Stored
from allotrope.models.readers.safetensors_file import open_file
from tests.quantised_kit import grid, reals, same

GPTQ = Stored("gptq", 4, 32, True, zero_offset=1)
ORDERED = Stored("gptq", 4, 32, True, desc_act=True)
AWQ = Stored("awq", 4, 32, False, ignore=("lm_head", "visual"))
PACKED = Stored("compressed-tensors", 4, 32, True, form="pack-quantized", ignore=("lm_head", "re:.*gate$"))
POINTS = Stored("compressed-tensors", 4, 32, False, form="pack-quantized")
INDEXED = Stored("compressed-tensors", 4, 32, True, desc_act=True, form="pack-quantized")
INT8 = Stored("compressed-tensors", 8, -1, True, form="int-quantized", targets=("re:.*_proj",))
FP8 = Stored("compressed-tensors", 8, -1, True, form="float-quantized", floating=True)

PLAIN = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.q_proj.bias"]
PARTS = [
    (GPTQ, ["qweight", "qzeros", "scales"], ["g_idx"]),
    (ORDERED, ["qweight", "qzeros", "scales", "g_idx"], []),
    (AWQ, ["qweight", "qzeros", "scales"], []),
    (PACKED, ["weight_packed", "weight_scale", "weight_shape"], ["weight_zero_point"]),
    (POINTS, ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"], []),
    (INDEXED, ["weight_packed", "weight_scale", "weight_shape", "weight_g_idx"], ["weight_zero_point"]),
    (INT8, ["weight_scale", "weight"], ["weight_zero_point"]),
    (FP8, ["weight_scale", "weight"], ["weight_zero_point"]),
]
MODULES = ["model.layers.0.q_proj", "model.layers.0.down_proj", "model.layers.1.q_proj"]


@pytest.mark.parametrize(("stored", "must", "may"), PARTS, ids=range(len(PARTS)))
def test_each_tensor_is_somebodys(stored: Stored, must: list[str], may: list[str]) -> None:
    """With all that a module may have, and with only what it must have."""
    for parts in (must, must + may):
        names = [f"{module}.{part}" for module in MODULES for part in parts]
        found = split([*PLAIN, *names], stored)
        assert found.plain == tuple(sorted(PLAIN))
        assert set(found.modules) == set(MODULES)
        for module, tensors in found.modules.items():
            assert tensors == {part: f"{module}.{part}" for part in parts}


@pytest.mark.parametrize(("stored", "must", "may"), PARTS, ids=range(len(PARTS)))
def test_a_part_that_is_missing_is_named(stored: Stored, must: list[str], may: list[str]) -> None:
    first, *rest = must
    for part in rest:
        names = [f"{module}.{other}" for module in MODULES for other in must]
        names.remove(f"{MODULES[1]}.{part}")
        with pytest.raises(CheckpointError) as caught:
            split([*PLAIN, *names], stored, "there")
        wanted = f"there: '{MODULES[1]}' has {first}, but '{MODULES[1]}.{part}' is missing; download"
        assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize(("stored", "must", "may"), PARTS, ids=range(len(PARTS)))
def test_a_part_without_its_module_is_named(stored: Stored, must: list[str], may: list[str]) -> None:
    names = [f"{module}.{part}" for module in MODULES for part in must]
    for stray in must[1:] + may:
        if stray == "weight":
            continue  # which anybody may have
        with pytest.raises(CheckpointError) as caught:
            split([*names, f"model.layers.7.x.{stray}"], stored, "there")
        assert str(caught.value).startswith(f"there: tensor 'model.layers.7.x.{stray}' belongs to no module stored as ")


def names_of(parts: list[str], *extra: str) -> list[str]:
    return [*PLAIN, *(f"{module}.{part}" for module in MODULES for part in parts), *extra]


WRONG: list[tuple[list[str], Stored, str]] = [
    (PLAIN, GPTQ, "the config says gptq weights (int4, groups of 32), but no tensor is called *.qweight"),
    (["qweight", "qzeros", "scales"], GPTQ, "no tensor is called *.qweight"),
    (names_of(PARTS[3][1]), GPTQ, "no tensor is called *.qweight"),
    (names_of(PARTS[6][1]), PACKED, "no tensor is called *.weight_packed"),
    (
        names_of(PARTS[0][1], f"{MODULES[0]}.weight"),
        GPTQ,
        "'model.layers.0.q_proj' has both qweight and weight; download",
    ),
    (names_of(PARTS[0][1], f"{MODULES[0]}.g_idx"), AWQ, "tensor 'model.layers.0.q_proj.g_idx' belongs to no module"),
    (
        names_of([], *(f"model.visual.q.{part}" for part in PARTS[2][1])),
        AWQ,
        "'model.visual.q' has qweight, but the config's 'visual' says that it is not quantised",
    ),
    (
        names_of([], *(f"model.layers.3.gate.{part}" for part in PARTS[3][1])),
        PACKED,
        "'model.layers.3.gate' has weight_packed, but the config's 're:.*gate$' says that it is not quantised",
    ),
    (
        names_of(PARTS[6][1], "model.layers.3.gate.weight", "model.layers.3.gate.weight_scale"),
        INT8,
        "'model.layers.3.gate' has weight_scale, but the config's targets do not name it",
    ),
    (names_of(PARTS[6][1], f"{MODULES[0]}.input_scale"), INT8, "tensor 'model.layers.0.q_proj.input_scale' belongs to"),
    (names_of(PARTS[6][1], "model.layers.0.attn.k_scale"), INT8, "tensor 'model.layers.0.attn.k_scale' belongs to no"),
    (names_of(PARTS[3][1], f"{MODULES[0]}.weight_g_idx"), PACKED, "'model.layers.0.q_proj.weight_g_idx' belongs to no"),
]


@pytest.mark.parametrize(("names", "stored", "words"), WRONG, ids=range(len(WRONG)))
def test_what_contradicts_the_config_is_named(names: list[str], stored: Stored, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        split(names, stored, "there")
    assert str(caught.value).startswith("there: ") and words in str(caught.value)


@given(st.sampled_from(PARTS), st.data())
def test_a_split_gives_back_all_it_was_given(row: tuple[Stored, list[str], list[str]], data: st.DataObject) -> None:
    stored, must, may = row
    names = {*PLAIN}
    for i in range(data.draw(st.integers(1, 4))):
        extra = data.draw(st.lists(st.sampled_from(may), unique=True)) if may else []
        names |= {f"model.layers.{i}.up_proj.{part}" for part in [*must, *extra]}
    found = split(sorted(names), stored)
    given_back = [*found.plain, *(name for tensors in found.modules.values() for name in tensors.values())]
    assert sorted(given_back) == sorted(names)


@pytest.mark.parametrize("stored", [GPTQ, ORDERED, AWQ, POINTS, INT8], ids=lambda stored: stored.words)
def test_a_file_is_read_module_by_module(stored: Stored, tmp_path: Path) -> None:
    """Written by the safetensors library, read by our reader, module for module the codes that went in."""
    _, pack = LAYOUTS[stored.method]
    low = -(1 << stored.bits - 1) if stored.number.startswith("int") else 0
    made: dict[str, Codes] = {}
    tensors: dict[str, Any] = {name: np.ones(3, np.float16) for name in PLAIN}
    for seed, module in enumerate(MODULES):
        kind = np.int8 if low else np.uint8
        groups = 1 if stored.group == -1 else 2
        codes = np.array(grid(8 + 8 * seed, 64, low, low + (1 << stored.bits) - 1, seed), kind)
        zeros = np.array(grid(8 + 8 * seed, groups, low, low + 15, seed), kind) if not stored.symmetric else None
        order = np.arange(64, dtype=np.int32) % 2 if stored.desc_act else None
        scales = reals(8 + 8 * seed, groups, seed=seed)
        made[module] = Codes(stored.number, codes, scales, zeros, None if groups == 1 else 32, order)
        tensors |= {f"{module}.{part}": array for part, array in pack(made[module], stored).items()}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    file = open_file(path)
    found = split(file.tensors, stored, str(path))
    assert found.plain == tuple(sorted(PLAIN))
    for module, codes in made.items():
        back = read(found, module, file.read, stored, str(path))
        same(back.codes, codes.codes)
        same(back.dequantised("fp64"), codes.dequantised("fp64"))


def test_e4m3_comes_out_of_a_file_as_its_bytes(tmp_path: Path) -> None:
    weight = torch.arange(24, dtype=torch.float32).reshape(2, 12).to(torch.float8_e4m3fn)
    tensors = {"a.q_proj.weight": weight, "a.q_proj.weight_scale": torch.tensor([[0.5], [2.0]], dtype=torch.bfloat16)}
    path = tmp_path / "model.safetensors"
    save_torch_file(tensors, path)
    file = open_file(path)
    assert file.tensors["a.q_proj.weight"].dtype == "fp8"
    found = read(split(file.tensors, FP8), "a.q_proj", file.read, FP8)
    same(found.dequantised(), weight.to(torch.float32).numpy() * np.array([[0.5], [2.0]], np.float32))


def test_reading_names_the_file() -> None:
    found = split(names_of(PARTS[2][1]), AWQ)
    with pytest.raises(CheckpointError, match=r"^there: model\.layers\.0\.q_proj\.qweight is float16, not int32; down"):
        read(found, MODULES[0], lambda name: np.ones((32, 1), np.float16), AWQ, "there")
