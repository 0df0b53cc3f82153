"""Whole checkpoints in codes, of three families and in every layout: opened, and what each of their weights means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from allotrope.errors import CheckpointError
from allotrope.models.model import open_model
from allotrope.models.quantised.stored import Stored
from tests.quantised_folder import CT, quantised
from tests.tiny import oracle, rewrite_config, rewrite_tensors

Tensors = Mapping[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]

STORED = {
    "gptq": Stored("gptq", 4, 32, True, zero_offset=1),
    "gptq-channel": Stored("gptq", 4, -1, True, zero_offset=1),
    "gptq-points": Stored("gptq", 4, 32, False),
    "gptq-order": Stored("gptq", 4, 32, True, desc_act=True, zero_offset=1),
    "gptq-int8": Stored("gptq", 8, 32, True, zero_offset=1),
    "awq": Stored("awq", 4, 32, False, ignore=("lm_head",)),
    "int4": Stored(CT, 4, 32, True, form="pack-quantized", ignore=("lm_head",)),
    "int4-points": Stored(CT, 4, 32, False, form="pack-quantized", ignore=("lm_head",)),
    "int8": Stored(CT, 8, -1, True, form="int-quantized", ignore=("lm_head",)),
    "int8-acts": Stored(CT, 8, -1, True, form="int-quantized", activations="int8", ignore=("lm_head",)),
    "int4-acts": Stored(CT, 4, 32, True, form="pack-quantized", activations="int8", ignore=("lm_head",)),
    "fp8-acts": Stored(CT, 8, -1, True, form="float-quantized", floating=True, activations="fp8", ignore=("lm_head",)),
    "fp8": Stored(CT, 8, -1, True, form="float-quantized", floating=True, ignore=("lm_head",)),
    "fp8-tensor": Stored(CT, 8, -1, True, form="float-quantized", floating=True, per_tensor=True, ignore=("lm_head",)),
}
CASES = [(kind, name) for kind in ("llama", "gpt2", "qwen") for name in STORED]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_each_weight_is_what_its_codes_stand_for(kind: str, name: str, tmp_path: Path) -> None:
    """Bit for bit, slot by slot, as a whole and in rows; q, k and v out of what they are fused in."""
    folder = quantised(kind, tmp_path, STORED[name])
    model, wide = open_model(folder), open_model(folder / "wide")
    assert model.stored_as == STORED[name] and wide.stored_as is None and not wide.quantised
    assert model.sources.keys() == wide.sources.keys()
    layers = len(model.recipe.blocks)
    assert len(model.quantised) == layers * (6 if kind == "gpt2" else 7)
    for slot in model.sources:
        found, dtype = model.read(slot)
        meant, _ = wide.read(slot)
        assert dtype == "fp32"
        np.testing.assert_array_equal(found, meant, strict=True)
    for slot in model.quantised:
        np.testing.assert_array_equal(model.codes(slot).dequantised(), wide.read(slot)[0], strict=True)
    assert model.dtypes == ("fp32",)
    assert model.checkpoint.nbytes < wide.checkpoint.nbytes


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
def test_transformers_own_class_computes_what_the_codes_mean(kind: str, tmp_path: Path) -> None:
    """The oracle reads a quantised checkpoint as it reads any other, and needs no library for it."""
    folder = quantised(kind, tmp_path, STORED["gptq"])
    ids = torch.tensor([[3, 17, 99, 5]])
    with torch.no_grad():
        torch.testing.assert_close(oracle(folder)(ids).logits, oracle(folder / "wide")(ids).logits, rtol=0, atol=0)


def test_what_tools_leave_beside_a_module_is_taken_for_what_it_is(tmp_path: Path) -> None:
    """Old AutoGPTQ wrote a bias of zeros for each module; names may lack their prefix; a layer may stay as it was."""
    folder = quantised("qwen", tmp_path, STORED["gptq"])
    module = "transformer.h.1.mlp.w1"

    def change(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{module}.")}
        zeros = {"transformer.h.0.mlp.w1.bias": torch.zeros(96), f"{module}.weight": torch.ones(96, 64)}
        return {name.removeprefix("transformer."): tensor for name, tensor in {**kept, **zeros}.items()}

    rewrite(folder, change)
    model, wide = open_model(folder), open_model(folder / "wide")
    assert model.mapped.must_be_zero == ("h.0.mlp.w1.bias",)
    model.check_zero()
    assert "blocks.1.mlp.up.weight" not in model.quantised and len(model.quantised) == 20
    assert model.read("blocks.1.mlp.up.weight")[0].min() == 1
    np.testing.assert_array_equal(model.read("blocks.2.attn.v.weight")[0], wide.read("blocks.2.attn.v.weight")[0])
    with pytest.raises(KeyError, match="not quantised"):
        model.codes("blocks.1.mlp.up.weight")


def rewrite(folder: Path, change: Change) -> None:
    """Replace the weights; none may share another's memory."""
    rewrite_tensors(folder, lambda tensors: {name: tensor.clone() for name, tensor in change(tensors).items()})


def without(tensors: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"
FAULTS: list[tuple[str, Change, str]] = [
    ("gptq", lambda t: without(t, f"{Q}.qzeros"), f"'{Q}' has qweight, but '{Q}.qzeros' is missing; download"),
    ("gptq", lambda t: without(t, f"{Q}.qweight"), f"tensor '{Q}.g_idx' belongs to no module stored as gptq weights"),
    (
        "gptq",
        lambda t: without(t, *(name for name in t if name.startswith(f"{Q}."))),
        f"no tensor {Q}.weight for blocks.1.attn.q.weight; the checkpoint is incomplete",
    ),
    (
        "gptq",
        lambda t: {**t, f"{Q}.qweight": t[f"{Q}.qweight"][:4]},
        f"tensor {Q}.qweight is [4, 64], the config makes it [8, 64]; correct config.json",
    ),
    (
        "gptq",
        lambda t: {**t, f"{Q}.scales": t[f"{Q}.scales"].T},
        f"tensor {Q}.scales is [64, 2], the config makes it [2, 64]",
    ),
    (
        "gptq",
        lambda t: {**t, f"{Q}.scales": t[f"{Q}.qweight"]},
        f"tensor {Q}.scales is int32, not fp16 or bf16 or fp32",
    ),
    (
        "gptq",
        lambda t: {**t, **{f"model.visual.{part}": t[f"{Q}.{part}"] for part in ("qweight", "qzeros", "scales")}},
        "tensor 'model.visual.qweight' is no part of llama (nor are 2 others)",
    ),
    (
        "awq",
        lambda t: {**t, f"{UP}.qweight": t[f"{UP}.qweight"].T},
        f"tensor {UP}.qweight is [12, 64], the config makes it [64, 12]",
    ),
    (
        "int4",
        lambda t: {**t, f"{UP}.weight_shape": t[f"{UP}.weight_shape"][:1]},
        f"tensor {UP}.weight_shape is [1], the config makes it [2]",
    ),
    (
        "int8",
        lambda t: {**t, f"{UP}.weight": t[f"{UP}.weight"].float()},
        f"tensor {UP}.weight is fp32, not int8; take both files from the original",
    ),
    (
        "fp8-tensor",
        lambda t: {**t, f"{UP}.weight_scale": torch.ones(96, 1)},
        f"tensor {UP}.weight_scale is [96, 1], the config makes it [1]",
    ),
]


@pytest.mark.parametrize(("name", "change", "words"), FAULTS, ids=range(len(FAULTS)))
def test_a_tensor_that_is_missing_or_wrong_is_named_on_opening(
    name: str, change: Change, words: str, tmp_path: Path
) -> None:
    folder = quantised("llama", tmp_path, STORED[name])
    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_beyond_the_groups_is_named_on_reading(tmp_path: Path) -> None:
    """It is no header, so the proof does not see it; whoever reads the module does."""
    folder = quantised("llama", tmp_path, STORED["gptq-order"])
    rewrite(folder, lambda t: {**t, f"{Q}.g_idx": t[f"{Q}.g_idx"] + 1})
    with pytest.raises(CheckpointError, match=rf"{Q}\.g_idx names groups 1 to 2, but there are 2; download"):
        open_model(folder).read("blocks.1.attn.q.weight")


def test_groups_must_divide_the_model(tmp_path: Path) -> None:
    folder = quantised("llama", tmp_path, STORED["gptq"])
    rewrite_config(
        folder, lambda said: {**said, "quantization_config": {**said["quantization_config"], "group_size": 48}}
    )
    with pytest.raises(CheckpointError, match="qweight cannot be: groups of 48 do not divide its 64 inputs; correct"):
        open_model(folder)


def test_an_embedding_in_codes_is_refused(tmp_path: Path) -> None:
    folder = quantised("llama", tmp_path, STORED["gptq"])
    lost = "model.embed_tokens"

    def change(t: Tensors) -> Tensors:
        rest = {name: tensor for name, tensor in t.items() if name != f"{lost}.weight"}
        return {**rest, **{f"{lost}.{part}": t[f"{Q}.{part}"] for part in ("qweight", "qzeros", "scales")}}

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=r"the embedding, model\.embed_tokens, is quantised, but it is no linear"):
        open_model(folder)
