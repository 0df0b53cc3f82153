"""Meta's layout, made from a tiny Hugging Face LLaMA by the inverse of what we do, gives that LLaMA back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import Checkpoint, TensorInfo
from allotrope.models.readers import pickle_worker, pickled
from allotrope.models.readers.meta_config import derive_config
from allotrope.models.readers.open import open_checkpoint

DIM, LAYERS, HEADS, KV_HEADS, VOCAB, MLP = 32, 2, 4, 2, 48, 96
PARAMS: dict[str, Any] = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS}
PARAMS |= {"multiple_of": 16, "norm_eps": 1e-5, "vocab_size": -1}
INNER = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert our own files without the seconds that a process with torch takes; that one has its own tests."""

    def work(sources: Sequence[Path], out: Path, limit: int) -> None:
        for number, source in enumerate(sources):
            pickle_worker.convert(str(source), out / f"{number:05d}{pickle_worker.SUFFIX}", limit)

    monkeypatch.setattr(pickled, "_work", work)


def original() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )
    state = LlamaForCausalLM(config).bfloat16().state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def to_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Channel i of the first half and channel i of the second become neighbours."""
    first, second = weight.view(heads, 2, -1, weight.shape[1]).unbind(1)
    return torch.stack([first, second], dim=2).reshape(weight.shape)


def meta_name(name: str, embedding_axis: int) -> tuple[str, int | None]:
    outer: dict[str, tuple[str, int | None]] = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", embedding_axis),
        "model.norm.weight": ("norm.weight", None),
        "lm_head.weight": ("output.weight", 0),
    }
    if name in outer:
        return outer[name]
    _, _, layer, rest = name.split(".", 3)
    inner, axis = INNER[rest.removesuffix(".weight")]
    return f"layers.{layer}.{inner}.weight", axis


def write(folder: Path, ranks: int, embedding_axis: int = 1, **params: Any) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    (folder / "tokenizer.model").write_bytes(b"not read here")
    tables: list[dict[str, torch.Tensor]] = [{"rope.freqs": torch.ones(4)} for _ in range(ranks)]
    for name, tensor in original().items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
        lying = to_pairs(tensor, heads) if heads else tensor
        source, axis = meta_name(name, embedding_axis)
        for rank, table in enumerate(tables):
            table[source] = lying if axis is None else lying.chunk(ranks, axis)[rank].clone()
    for rank, table in enumerate(tables):
        torch.save(table, folder / f"consolidated.{rank:02d}.pth")
    return folder


def assert_the_original(found: Checkpoint) -> None:
    expected = original()
    assert set(found.tensors) == set(expected)
    for name, tensor in expected.items():
        plain = tensor.view(torch.int16).numpy().view(np.uint16)
        assert found.tensors[name] == TensorInfo(tuple(tensor.shape), "bf16")
        assert np.array_equal(found.read(name), plain), name
        rows = len(plain)
        for start, stop in ((0, rows), (0, 0), (1, rows - 1), (rows // 2, rows // 2 + 1), (rows, rows)):
            assert np.array_equal(found.read_rows(name, start, stop), plain[start:stop]), (name, start, stop)


@pytest.mark.parametrize(("ranks", "embedding_axis"), [(1, 1), (2, 1), (2, 0)])
def test_the_same_model_again(ranks: int, embedding_axis: int, tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "m", ranks, embedding_axis), allow_pickle=True)
    assert_the_original(found)
    assert found.folder == tmp_path / "m"
    assert found.nbytes == sum(2 * tensor.numel() for tensor in original().values())
    config = LlamaConfig(**found.config)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (VOCAB, DIM, MLP)
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KV_HEADS)
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings is False
    assert config.max_position_embeddings == 4096


def test_refusals(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", 2)

    def refusal(allow_pickle: bool = True) -> str:
        with pytest.raises(CheckpointError) as found:
            open_checkpoint(folder, allow_pickle=allow_pickle)
        return str(found.value)

    assert "the weights are pickled (consolidated.00.pth, consolidated.01.pth)" in refusal(allow_pickle=False)
    for change, message in (
        ({"dim": 64}, "params.json: dim is 64 by params.json, but the weights have 32"),
        ({"multiple_of": 256}, "the MLP's width is 256 by params.json, but the weights have 96"),
        ({"vocab_size": 7}, "vocab_size is 7 by params.json, but the weights have 48"),
        ({"n_heads": 3}, "'layers.0.attention.wq.weight' has 32 rows, which 3 heads cannot share"),
        ({"moe": {"num_experts": 8}}, "unknown key moe"),
        ({"rope_theta": "big"}, "rope_theta is 'big', not a number"),
    ):
        (folder / "params.json").write_text(json.dumps(PARAMS | change))
        assert message in refusal()
    (folder / "params.json").write_text('{"dim": 1, "dim": 2}')
    assert "the key 'dim' stands twice" in refusal()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    assert "consolidated.00.pth is missing" in refusal()


def test_ranks_that_disagree(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", 2)
    path = folder / "consolidated.01.pth"
    table = torch.load(path, weights_only=True)
    torch.save(table | {"norm.weight": torch.zeros(DIM).bfloat16()}, path)
    with pytest.raises(CheckpointError, match=r"tensor 'norm.weight' differs from rank 0's"):
        open_checkpoint(folder, allow_pickle=True).read("model.norm.weight")
    torch.save({name: tensor for name, tensor in table.items() if "wq" not in name}, path)
    with pytest.raises(CheckpointError, match=r"tensor 'layers.0.attention.wq.weight' is not as in rank 0"):
        open_checkpoint(folder, allow_pickle=True)
    torch.save(table | {"extra.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"tensor 'extra.weight' is not as in rank 0"):
        open_checkpoint(folder, allow_pickle=True)


# (params.json, vocabulary, width of the MLP), all as published, and what the Hugging Face conversions say
PUBLISHED = [
    (
        {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1},
        (32000, 11008),
        {"max_position_embeddings": 2048, "num_key_value_heads": 32, "rope_theta": 10000.0, "bos_token_id": 1},
    ),
    (
        {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80}
        | {"norm_eps": 1e-05, "vocab_size": -1},
        (32000, 28672),
        {"max_position_embeddings": 4096, "num_key_value_heads": 8},
    ),
    (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024}
        | {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0},
        (128256, 14336),
        {"max_position_embeddings": 8192, "rope_theta": 500000.0, "bos_token_id": 128000},
    ),
    (
        {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024}
        | {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True},
        (128256, 14336),
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
]


@pytest.mark.parametrize(("params", "sizes", "expected"), PUBLISHED)
def test_configs_of_the_published_models(
    params: dict[str, Any], sizes: tuple[int, int], expected: dict[str, Any]
) -> None:
    tensors = {"tok_embeddings.weight": (sizes[0], params["dim"]), "output.weight": (sizes[0], params["dim"])}
    tensors["layers.0.feed_forward.w1.weight"] = (sizes[1], params["dim"])
    config = derive_config(params, {name: TensorInfo(shape, "bf16") for name, shape in tensors.items()}, "params.json")
    assert {key: config[key] for key in expected} == expected
    assert config["torch_dtype"] == "bfloat16"
    assert ("rope_scaling" in config) == ("use_scaled_rope" in params)
