"""Weights: each in its place, none left over, none missing, and every transform with its inverse."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.errors import CheckpointError
from allotrope.models import family
from allotrope.models.mapping import restore
from allotrope.models.model import open_model
from allotrope.models.recipe import slots
from tests.tiny import FAMILIES, KINDS, rewrite_config, rewrite_tensors, tiny


def refusal(folder: Path) -> str:
    """The message with which a checkpoint is refused at opening."""
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_is_filled_and_reading_has_an_inverse(kind: str, tmp_path: Path) -> None:
    model = open_model(tiny(kind, tmp_path))
    shapes = slots(model.recipe)
    weights = {slot: model.read(slot)[0] for slot in model.sources}
    assert {slot: weight.shape for slot, weight in weights.items()} == shapes
    back = restore(model.sources, weights)
    spare = {*model.mapped.must_be_zero, *model.mapped.unused}
    assert set(back) == set(model.checkpoint.tensors) - spare
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, model.checkpoint.read(name))


@pytest.mark.parametrize("kind", FAMILIES)
def test_shapes_follow_from_the_config_alone(kind: str, tmp_path: Path) -> None:
    model = open_model(tiny(kind, tmp_path))
    stored = {name: info.shape for name, info in model.checkpoint.tensors.items()}
    assert {name: shape for name, shape, _ in model.family.tensors(model.recipe)} == stored


def test_parts_of_a_fused_matrix_are_the_right_ones(tmp_path: Path) -> None:
    for kind, name in (("gpt2", "transformer.h.1.attn.c_attn.weight"), ("qwen", "transformer.h.1.attn.c_attn.weight")):
        model = open_model(tiny(kind, tmp_path / kind))
        whole = model.read_original(name)
        rows = whole.T if kind == "gpt2" else whole
        for k, part in enumerate("qkv"):
            found, dtype = model.read(f"blocks.1.attn.{part}.weight")
            np.testing.assert_array_equal(found, rows[48 * k : 48 * (k + 1)])
            assert dtype == "fp32"


@pytest.mark.parametrize(
    ("kind", "long", "short"),
    [("gpt2", "transformer.", ""), ("opt", "model.decoder.", "decoder."), ("llama", "model.", "")],
)
def test_names_with_and_without_their_prefix(kind: str, long: str, short: str, tmp_path: Path) -> None:
    tiny(kind, tmp_path)
    before = {slot: open_model(tmp_path).read(slot)[0] for slot in open_model(tmp_path).sources}

    def shorten(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {short + name.removeprefix(long) if name.startswith(long) else name: t for name, t in tensors.items()}

    rewrite_tensors(tmp_path, shorten)
    model = open_model(tmp_path)
    assert any(not source.name.startswith(long) for source in model.sources.values())
    for slot, weight in before.items():
        np.testing.assert_array_equal(model.read(slot)[0], weight)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 64, 64)),
        ("gpt2", "transformer.h.2.attn.masked_bias", ()),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("qwen", "transformer.rotary_emb.inv_freq", (4,)),
    ],
)
def test_tensors_that_hold_no_weights_are_known(kind: str, name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tiny(kind, tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, name: torch.zeros(shape)})
    assert open_model(tmp_path).mapped.unused == (name,)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, "model.layers.0.self_attn.sinks": torch.zeros(6)})
    assert "'model.layers.0.self_attn.sinks' is no part of llama" in refusal(tmp_path)


def test_a_layer_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    rewrite_config(tmp_path, lambda config: {**config, "num_hidden_layers": 2})
    assert "tensor 'model.layers.2.input_layernorm.weight' is no part of llama" in refusal(tmp_path)
    rewrite_config(tmp_path, lambda config: {**config, "num_hidden_layers": 1000})
    assert "no tensor model.layers.3.input_layernorm.weight for blocks.3.attn.norm.weight" in refusal(tmp_path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_missing_tensor_is_named_with_its_slot(kind: str, tmp_path: Path) -> None:
    tiny(kind, tmp_path)
    model = open_model(tmp_path)
    slot = "blocks.1.mlp.down.weight"
    name = model.sources[slot].name
    rewrite_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    assert f"no tensor {name} for {slot}" in refusal(tmp_path)


def test_a_config_that_lies_makes_nothing_large(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    huge = {"num_hidden_layers": 1024, "hidden_size": 2**24, "intermediate_size": 2**24, "vocab_size": 2**24}
    rewrite_config(tmp_path, lambda config: {**config, **huge, "num_attention_heads": 6 * 2**10, "head_dim": 64})
    tracemalloc.start()
    message = refusal(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "model.embed_tokens.weight is [131, 48], the config makes it [16777216, 16777216]" in message
    assert peak < 20e6


def test_a_vocabulary_that_is_not_the_embedding_is_refused_with_both(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    rewrite_config(tmp_path, lambda config: {**config, "vocab_size": 132})
    message = refusal(tmp_path)
    assert "model.embed_tokens.weight is [131, 48]" in message and "[132, 48]" in message


def test_a_transposed_matrix_is_refused_by_its_shape(tmp_path: Path) -> None:
    tiny("gpt2", tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, name: tensors[name].T})
    assert f"{name} is [192, 48], the config makes it [48, 192]" in refusal(tmp_path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    assert f"tensor {name} has dtype int8" in refusal(tmp_path)


# --- biases


def test_absent_biases_are_all_or_none(tmp_path: Path) -> None:
    tiny("galactica", tmp_path)
    model = open_model(tmp_path)
    assert model.mapped.notes == ("no linear biases",) and not model.recipe.blocks[0].attention.bias
    assert "blocks.0.attn.norm.bias" in model.sources
    tiny("opt", tmp_path / "part")
    gone = "model.decoder.layers.1.fc1.bias"
    rewrite_tensors(tmp_path / "part", lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    message = refusal(tmp_path / "part")
    assert f"no tensor {gone}" in message and "17 of 18 linear biases" in message and "all of them or none" in message


def test_absent_norm_biases(tmp_path: Path) -> None:
    tiny("galactica", tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith("layer_norm.bias")})
    model = open_model(tmp_path)
    assert model.mapped.notes == ("no linear biases", "no norm biases")
    assert not [slot for slot in model.sources if slot.endswith(".bias")]


def test_absent_biases_are_an_error_elsewhere(tmp_path: Path) -> None:
    tiny("gpt2", tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if not n.endswith("c_fc.bias")})
    assert "no tensor transformer.h.0.mlp.c_fc.bias for blocks.0.mlp.up.bias" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stored_zero_biases_are_read_and_proven_zero(dtype: str, tmp_path: Path) -> None:
    tiny("galactica-zero", tmp_path, dtype=dtype)
    model = open_model(tmp_path)
    assert len(model.mapped.must_be_zero) == 18
    model.check_zero()
    name = "model.decoder.layers.2.fc2.bias"

    def put(value: float) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {**tensors, name: torch.full_like(tensors[name], 0.0).index_fill(0, torch.tensor([47]), value)}

        rewrite_tensors(tmp_path, change)

    put(-0.0)
    open_model(tmp_path).check_zero()
    put(1e-6)
    with pytest.raises(CheckpointError, match=f"{name} is not zero"):
        open_model(tmp_path).check_zero()


def test_a_stored_zero_bias_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.bias"
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, name: torch.zeros(48)})
    assert f"{name} is [48], the config makes it [80]" in refusal(tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {**tensors, name: torch.zeros(80)})
    assert open_model(tmp_path).mapped.must_be_zero == (name,)


# --- the head


def test_a_tied_head_may_be_stored_if_it_is_equal(tmp_path: Path) -> None:
    tiny("llama-llama3", tmp_path)

    def add(change: Any) -> None:
        rewrite_tensors(tmp_path, lambda t: {**t, "lm_head.weight": change(t["model.embed_tokens.weight"].clone())})

    add(lambda head: head)
    model = open_model(tmp_path)
    model.check_tied()
    assert model.mapped.must_equal == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert "head.weight" not in model.sources
    add(lambda head: head.index_fill(0, torch.tensor([130]), 0.5))
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs .* tie_word_embeddings false"):
        open_model(tmp_path).check_tied()
    add(lambda head: head[:130])
    assert "lm_head.weight is [130, 48], the config makes it [131, 48]" in refusal(tmp_path)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    rewrite_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    message = refusal(tmp_path)
    assert "no tensor lm_head.weight" in message and "tie_word_embeddings true" in message


# --- generation settings


def test_generation_settings(tmp_path: Path) -> None:
    tiny("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [2, 7], "pad_token_id": 131, "temperature": 0.6, "do_sample": true, "max_window_size": 9}'
    )
    assert open_model(tmp_path).generation == {
        "bos_token_id": 1,
        "eos_token_ids": [2, 7],
        "pad_token_id": None,
        "defaults": {"temperature": 0.6, "do_sample": True},
    }
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [131, 3]}')
    assert open_model(tmp_path).generation["eos_token_ids"] == [3], "one that cannot be drawn ends nothing"


# --- the rule of one place


def test_no_family_restates_what_its_parent_says_or_has_from_its_own() -> None:
    derived = [child for child in family.all_families() if child.parent is not None]
    assert {child.name for child in derived} >= {"mistral", "qwen2", "qwen3", "decicoder"}
    for child in derived:
        inherited = family.by_name(str(child.parent)).facts
        assert not [name for name, value in child.stated.items() if inherited.get(name) == value], child.name
        assert child.stated.items() <= child.facts.items()
