"""The first Qwen (2023): one fused c_attn with bias, a half-size MLP, NTK and log-n past its training length."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from allotrope.models.family import Family, Oracle, Tensors, module
from allotrope.models.hfconfig import Values, count, fixed, flag, names, number
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe, Rotary

KEYS = (
    count("vocab_size"),
    count("hidden_size"),
    count("intermediate_size"),
    count("num_hidden_layers", high=1024),
    count("num_attention_heads"),
    count("kv_channels", 128, high=4096),
    count("max_position_embeddings", 8192),
    count("seq_length", 8192),
    number("layer_norm_epsilon", 1e-6, high=1.0),
    number("rotary_emb_base", 10000.0, low=1e-3, high=1e18),
    flag("use_dynamic_ntk", True),
    flag("use_logn_attn", True),
    flag("tie_word_embeddings", False),
    fixed("no_bias", True, "biases other than c_attn's are not supported"),
    fixed("rotary_pct", 1.0, "the published models rotate whole heads"),
    fixed("scale_attn_weights", True, "unscaled attention is not supported"),
    fixed("use_cache_quantization", False, "a quantised cache is an option of the engine, not of the checkpoint"),
)

IGNORED = names("""attn_dropout_prob emb_dropout_prob bf16 fp16 fp32 onnx_safe use_flash_attn use_cache_kernel
    softmax_in_fp32""")


def recipe(v: Values) -> Recipe:
    """The recipe of a first-Qwen config; its `intermediate_size` counts both halves of the MLP."""
    heads, head_dim, trained = v["num_attention_heads"], v["kv_channels"], v["seq_length"]
    if heads * head_dim != v["hidden_size"]:
        raise v.bad(f"hidden_size {v['hidden_size']} is not num_attention_heads {heads} times kv_channels {head_dim}")
    if head_dim % 2 or v["intermediate_size"] % 2:
        raise v.bad(f"kv_channels {head_dim} and intermediate_size {v['intermediate_size']} must be even")
    if head_dim < 4 and v["use_dynamic_ntk"]:
        raise v.bad(f"use_dynamic_ntk is not defined for kv_channels {head_dim}")
    base = v["rotary_emb_base"]
    ntk = Rotary(head_dim, base, "qwen_ntk", {"original_len": trained})
    attention = Attention(
        heads,
        heads,
        head_dim,
        bias=True,
        rotary=ntk if v["use_dynamic_ntk"] else Rotary(head_dim, base),
        logn=trained if v["use_logn_attn"] else None,
    )
    norm = Norm("rms", v["layer_norm_epsilon"])
    block = Block(attention, Mlp(v["intermediate_size"] // 2, "silu", gated=True), norm)
    return Recipe(
        vocab=v["vocab_size"],
        hidden=v["hidden_size"],
        max_len=v["max_position_embeddings"],
        blocks=(block,) * v["num_hidden_layers"],
        final_norm=norm,
        tied=v["tie_word_embeddings"],
    )


def as_qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the Qwen2 that computes the same, up to `seq_length`."""
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "max_position_embeddings": config.get("max_position_embeddings", 8192),
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000))},
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


_QWEN2 = (  # the publisher's name → Qwen2's; c_attn is cut in three besides
    ("transformer.wte.", "model.embed_tokens."),
    ("transformer.ln_f.", "model.norm."),
    ("transformer.h.", "model.layers."),
    (".ln_1.", ".input_layernorm."),
    (".ln_2.", ".post_attention_layernorm."),
    (".attn.c_proj.", ".self_attn.o_proj."),
    (".mlp.w1.", ".mlp.up_proj."),
    (".mlp.w2.", ".mlp.gate_proj."),
    (".mlp.c_proj.", ".mlp.down_proj."),
)


def to_qwen2(config: Mapping[str, Any], tensors: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors under Qwen2's names."""
    hidden, found = config["hidden_size"], {}
    for original, tensor in tensors.items():
        name = original
        for old, new in _QWEN2:
            name = name.replace(old, new)
        if ".attn.c_attn." in name:
            for k, part in enumerate("qkv"):
                renamed = name.replace(".attn.c_attn.", f".self_attn.{part}_proj.")
                found[renamed] = tensor[k * hidden : (k + 1) * hidden]
        else:
            found[name] = tensor
    return found


def trained_length(config: Mapping[str, Any]) -> int | None:
    """Beyond it NTK and log-n set in, which Qwen2 does not have."""
    grows = config.get("use_dynamic_ntk", True) or config.get("use_logn_attn", True)
    return int(config.get("seq_length", 8192)) if grows else None


FAMILY = Family(
    name="qwen",
    architectures=("QWenLMHeadModel",),
    model_types=("qwen",),
    keys=KEYS,
    ignored=IGNORED,
    recipe=recipe,
    outer=(
        module("transformer.wte", "embed"),
        module("transformer.ln_f", "head.norm"),
        module("lm_head", "head"),
    ),
    block="transformer.h.{i}",
    inner=(
        module("ln_1", "attn.norm"),
        module("attn.c_attn", "attn.q", "attn.k", "attn.v"),
        module("attn.c_proj", "attn.o"),
        module("ln_2", "mlp.norm"),
        module("mlp.w2", "mlp.gate"),
        module("mlp.w1", "mlp.up"),
        module("mlp.c_proj", "mlp.down"),
    ),
    prefixes=("transformer.", ""),
    unused=(".rotary_emb.inv_freq", ".attn.masked_bias"),
    code={
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    oracle=Oracle("Qwen2Config", "Qwen2ForCausalLM", "qwen2", as_qwen2, to_qwen2, trained_length),
)
