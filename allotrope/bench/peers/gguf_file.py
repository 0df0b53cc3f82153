"""A GGUF file of a Hugging Face folder, written with llama.cpp's own library and quantised by its own quantiser."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE = "model.gguf"
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NEOX = ("qwen2", "qwen3")  # rotated by halves, as transformers does; llama's by pairs


def convert(source: str, target: str, form: str) -> None:
    """As wide as the checkpoint, then llama.cpp's own quantiser with its usual mixture."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # it tells everything that it does
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    folder = Path(target)
    wide, file = folder / "wide.gguf", folder / _FILE
    _write(Path(source), wide)
    params = llama_cpp.llama_model_quantize_default_params()
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{names[form]}")
    code = llama_cpp.llama_model_quantize(str(wide).encode(), str(file).encode(), ctypes.byref(params))
    if code:
        raise ValueError(f"llama.cpp's quantiser failed with code {code}")
    wide.unlink()


def _write(source: Path, target: Path) -> None:
    """A GGUF file of a Hugging Face folder, in the checkpoint's own dtype."""
    import gguf

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kind = config["model_type"]
    if kind not in ("gpt2", "llama", "mistral", *_NEOX):
        raise ValueError(f"llama.cpp has no architecture that computes what a {kind} model does")
    arch = kind if kind in _NEOX or kind == "gpt2" else "llama"
    writer = gguf.GGUFWriter(str(target), arch)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    read = _Tensors(source)
    if arch == "gpt2":
        _describe_gpt2(writer, config)
        tensors = _gpt2(read, config)
    else:
        _describe_llama(writer, config)
        tensors = _llama(read, config, permuted=arch == "llama")
        factors = _rope_factors(config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
    for name, value in tensors:
        if value.dtype.name == "uint16":  # bf16
            writer.add_tensor(name, value.view("uint8"), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _Tensors:
    """The tensors of a folder's safetensors files by name, mapped; bf16 as uint16, vectors in fp32."""

    def __init__(self, folder: Path) -> None:
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._where |= {name: (path, 8 + length, facts) for name, facts in header.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __call__(self, name: str) -> Any:
        import numpy as np

        path, base, facts = self._where[name]
        begin, _ = facts["data_offsets"]
        shape, kind = tuple(facts["shape"]), facts["dtype"]
        value = np.memmap(path, _TYPES[kind], "r", base + begin, shape)
        if len(shape) > 1:
            return np.ascontiguousarray(value)
        if kind == "BF16":
            return (value.astype("<u4") << 16).view("<f4")
        return value.astype("<f4")


def _describe_gpt2(writer: Any, config: dict[str, Any]) -> None:
    if config.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ValueError(f"llama.cpp's gpt2 has a tanh GELU, this model {config['activation_function']}")
    writer.add_block_count(config["n_layer"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_context_length(config["n_positions"])
    writer.add_head_count(config["n_head"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _gpt2(read: _Tensors, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    import numpy as np

    yield "token_embd.weight", read("transformer.wte.weight")
    yield "position_embd.weight", read("transformer.wpe.weight")
    modules = {"attn_norm": "ln_1", "ffn_norm": "ln_2"}
    products = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    for i in range(config["n_layer"]):
        for ours, theirs in (modules | products).items():
            for part in ("weight", "bias"):
                value = read(f"transformer.h.{i}.{theirs}.{part}")
                yield f"blk.{i}.{ours}.{part}", np.ascontiguousarray(value.T) if value.ndim == 2 else value
    for part in ("weight", "bias"):
        yield f"output_norm.{part}", read(f"transformer.ln_f.{part}")
    if not config.get("tie_word_embeddings", True):
        yield "output.weight", read("lm_head.weight")


def _describe_llama(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    if config.get("sliding_window") and config.get("use_sliding_window", config["model_type"] == "mistral"):
        raise ValueError("llama.cpp's architecture for this model has no sliding window")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("this model's biases have no place in the file that is written here")
    rope = _rope(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(size)
    if rope["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling, wherever this version of transformers writes them."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.get("type", "default"))
    if found["rope_type"] not in ("default", "linear", "llama3"):
        raise ValueError(f"the file written here has no rope scaling of type {found['rope_type']}")
    return found


def _rope_factors(config: dict[str, Any]) -> Any:
    """By what llama3's scaling divides each frequency; None without it."""
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turning = rope["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    turns = rope["original_max_position_embeddings"] * turning / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32)


def _llama(read: _Tensors, config: dict[str, Any], *, permuted: bool) -> Iterator[tuple[str, Any]]:
    yield "token_embd.weight", read("model.embed_tokens.weight")
    heads = config["num_attention_heads"]
    groups = {"q": heads, "k": config.get("num_key_value_heads") or heads}
    linears = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    others = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }
    for i in range(config["num_hidden_layers"]):
        for ours, theirs in (others | linears).items():
            for part in ("weight", "bias"):
                name = f"model.layers.{i}.{theirs}.{part}"
                if name not in read:
                    continue
                value = read(name)
                if permuted and ours in ("attn_q", "attn_k"):
                    value = _by_pairs(value, groups[ours[-1]])
                yield f"blk.{i}.{ours}.{part}", value
    yield "output_norm.weight", read("model.norm.weight")
    if not config.get("tie_word_embeddings"):
        yield "output.weight", read("lm_head.weight")


def _by_pairs(weight: Any, heads: int) -> Any:
    """A head's rows so that rotated partners lie side by side."""
    size = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, size // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).copy()
