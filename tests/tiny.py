"""Tiny models of every family, made by transformers itself and written as their publishers would.

Sizes are odd on purpose (48 wide, 6 heads over 2 or 6, 3 layers, 131 words), so that no two axes can be
mixed up unnoticed; weights are large enough for the logits to spread and for every head to differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from allotrope.models.family import all_families
from allotrope.models.model import open_model

VOCAB, HIDDEN, HEADS, LAYERS, LIMIT = 131, 48, 6, 3, 64

_GPT2 = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_head": HEADS, "n_layer": LAYERS, "n_positions": LIMIT}
_GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "ffn_dim": 112,
    "max_position_embeddings": LIMIT,
    "word_embed_proj_dim": HIDDEN,
}
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": LIMIT,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_GALACTICA = {**_OPT, "activation_function": "gelu", "bos_token_id": 0, "enable_bias": False}


def _rope(kind: str, **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **numbers}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# kind → transformers' name of the class, and its config
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "gpt2-untied": ("GPT2", {**_GPT2, "tie_word_embeddings": False, "n_inner": 100}),
    "opt": ("OPT", _OPT),
    "opt-350m": ("OPT", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "galactica": ("OPT", _GALACTICA),  # biases absent, and the config does not say so
    "galactica-zero": ("OPT", _GALACTICA),  # biases there, all zero, and the config says that there are none
    "opt-bare": ("OPT", {**_OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    "llama": ("Llama", _LLAMA),
    "llama-grouped": ("Llama", {**_GROUPED, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {**_GROUPED, **_rope("linear", factor=2.5)}),
    "llama-dynamic": ("Llama", {**_GROUPED, **_rope("dynamic", factor=3.0), "max_position_embeddings": 24}),
    "llama-llama3": ("Llama", {**_GROUPED, **_rope("llama3", **_LLAMA3), "tie_word_embeddings": True}),
    "qwen": ("Qwen2", {**_LLAMA, "rms_norm_eps": 1e-6}),
    "decicoder": ("Llama", {**_GROUPED, "rms_norm_eps": 1e-6}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 9}),
    "qwen2": ("Qwen2", {**_GROUPED, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 16, "tie_word_embeddings": True}),
}

FAMILIES = tuple(family.name for family in all_families())
"""One kind per family."""


def tiny(kind: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
    """Write a tiny model of `kind` to `folder`; `overrides` go to transformers' config."""
    name, settings = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**settings, **overrides})
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))(config)
    _fill(model, seed)
    model = model.to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if kind in _PUBLISHED:
        _PUBLISHED[kind](model, folder)
    return folder


def _fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights that matter: no norm is one, no bias zero, and no head like another."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=source)
            if weight.dim() > 1:
                weight.copy_(0.2 * noise)
            else:
                weight.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Replace config.json by what `change` makes of it."""
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    """Replace the weights by what `change` makes of them."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    changed = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, path, metadata={"format": "pt"})


def _galactica(model: Any, folder: Path) -> None:
    """As published: the config predates the setting that would say that there are no biases."""
    rewrite_config(folder, lambda config: {k: v for k, v in config.items() if k != "enable_bias"})


def _galactica_zero(model: Any, folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        linears = [name for name in tensors if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight"))]
        zeros = {name.replace(".weight", ".bias"): torch.zeros(len(tensors[name])) for name in linears}
        return {**tensors, **{name: zero.to(tensors[linears[0]].dtype) for name, zero in zeros.items()}}

    rewrite_tensors(folder, add)


def _qwen(model: Any, folder: Path) -> None:
    """The publisher's layout of 2023: fused c_attn, w1 and w2, and an intermediate size that counts both."""
    state, config, found = model.state_dict(), model.config, {}
    for i in range(config.num_hidden_layers):
        there, here = f"model.layers.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            qkv = [state[f"{there}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{here}attn.c_attn.{kind}"] = torch.cat(qkv)
        for new, old in (
            ("attn.c_proj", "self_attn.o_proj"),
            ("mlp.w1", "mlp.up_proj"),
            ("mlp.w2", "mlp.gate_proj"),
            ("mlp.c_proj", "mlp.down_proj"),
            ("ln_1", "input_layernorm"),
            ("ln_2", "post_attention_layernorm"),
        ):
            found[f"{here}{new}.weight"] = state[f"{there}{old}.weight"]
    for new, old in (("transformer.wte", "model.embed_tokens"), ("transformer.ln_f", "model.norm"), ("lm_head",) * 2):
        found[f"{new}.weight"] = state[f"{old}.weight"]
    rewrite_tensors(folder, lambda _: found)
    published = json.loads((Path(__file__).parent / "configs" / "qwen-7b-chat.json").read_text())
    limit = config.max_position_embeddings
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": 2 * config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "kv_channels": config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "seq_length": limit,
        "max_position_embeddings": 4 * limit,
        "layer_norm_epsilon": config.rms_norm_eps,
    }
    rewrite_config(folder, lambda _: {**published, **sizes})


def _decicoder(model: Any, folder: Path) -> None:
    published = json.loads((Path(__file__).parent / "configs" / "decicoder-1b.json").read_text())
    rewrite_config(folder, lambda config: {**published, **{k: config[k] for k in published if k in _LLAMA}})


_PUBLISHED: dict[str, Callable[[Any, Path], None]] = {
    "galactica": _galactica,
    "galactica-zero": _galactica_zero,
    "qwen": _qwen,
    "decicoder": _decicoder,
}


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model in `folder` as transformers computes it, weights loaded by the family's own description."""
    model = open_model(folder)
    description = model.family.oracle
    config = getattr(transformers, description.config_class)(**description.config(model.config))
    config._attn_implementation = "eager"
    made = getattr(transformers, description.model_class)(config).to(dtype)
    raw = {name: model.read_original(name) for name in model.originals}
    dtypes = {model.original_dtype(name) for name in model.originals}
    assert len(dtypes) == 1
    state = {name: _as_torch(array, *dtypes) for name, array in description.tensors(model.config, raw).items()}
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert not missing or (missing == ["lm_head.weight"] and config.tie_word_embeddings), missing
    made.tie_weights()
    return made.eval()


def _as_torch(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole).view(torch.bfloat16) if dtype == "bf16" else torch.from_numpy(whole)
