"""params.json of Meta's layout, as the Hugging Face config of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allotrope.errors import CheckpointError
from allotrope.models import hfconfig
from allotrope.models.checkpoint import TensorInfo

_KEYS = (
    hfconfig.count("dim"),
    hfconfig.count("n_layers", high=1024),
    hfconfig.count("n_heads"),
    hfconfig.count("n_kv_heads", None),
    hfconfig.count("multiple_of", 256),
    hfconfig.number("ffn_dim_multiplier", None, low=1e-3, high=1e3),
    hfconfig.number("norm_eps", 1e-5, high=1.0),
    hfconfig.count("vocab_size", -1, low=-1),
    hfconfig.number("rope_theta", 10000.0, low=1.0),
    hfconfig.flag("use_scaled_rope", False),
    hfconfig.number("rope_scaling_factor", 8.0, low=1.0),
    hfconfig.count("max_seq_len", None),
)
_IGNORED = ("max_batch_size",)
_EMBEDDING, _GATE = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# vocabulary: (begin of text, ends); no file of this layout but the tokenizer says so.
_MARKS: Mapping[int, tuple[int, list[int]]] = {32000: (1, [2]), 128256: (128000, [128001, 128008, 128009])}


def derive_config(params: dict[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> dict[str, Any]:
    """The config, from params.json and from what the (joined) tensors show; where both speak, they must agree."""
    values = hfconfig.read(params, _KEYS, _IGNORED, where)
    for name in (_EMBEDDING, _GATE):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise CheckpointError(f"no matrix {name} in the checkpoint", where=where)
    vocab, width = tensors[_EMBEDDING].shape
    for what, said, found in (
        ("vocab_size", values["vocab_size"], vocab),
        ("dim", values["dim"], width),
        ("the MLP's width", _mlp_width(values), tensors[_GATE].shape[0]),
    ):
        if said not in (found, -1):
            raise CheckpointError(f"{what} is {said} by params.json, but the weights have {found}", where=where)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": tensors[_GATE].shape[0],
        "max_position_embeddings": _max_len(values),
        "num_attention_heads": values["n_heads"],
        "num_hidden_layers": values["n_layers"],
        "num_key_value_heads": values["n_kv_heads"] or values["n_heads"],
        "rms_norm_eps": values["norm_eps"],
        "rope_theta": values["rope_theta"],
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _DTYPES.get(tensors[_EMBEDDING].dtype, "float32"),
        "vocab_size": vocab,
    }
    if values["use_scaled_rope"]:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": values["rope_scaling_factor"],
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    if vocab in _MARKS:
        config["bos_token_id"], config["eos_token_id"] = _MARKS[vocab]
    return config


def _mlp_width(values: hfconfig.Values) -> int:
    """Two thirds of 4 · dim, times the multiplier, rounded up to a multiple."""
    width = int(2 * (4 * values["dim"]) / 3)
    if values["ffn_dim_multiplier"] is not None:
        width = int(values["ffn_dim_multiplier"] * width)
    multiple = int(values["multiple_of"])
    return -(-width // multiple) * multiple


def _max_len(values: hfconfig.Values) -> int:
    """The trained length, which params.json seldom states: it is known by what else each release changed."""
    if values["max_seq_len"] is not None:
        return int(values["max_seq_len"])
    if values["use_scaled_rope"]:
        return 131072  # LLaMA 3.1 and later
    by_base = {500000.0: 8192, 1000000.0: 16384}  # LLaMA 3, Code Llama
    return by_base.get(values["rope_theta"], 2048 if values["norm_eps"] <= 1e-6 else 4096)  # LLaMA 1, 2
