"""The real shapes that `random:SHAPE` names: the published configs, without what is not about the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _opt(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """Galactica as OPT has it: exact GELU, and no biases in the linear layers."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "gelu",
        "bos_token_id": 0,
        "do_layer_norm_before": True,
        "enable_bias": False,
        "eos_token_id": 2,
        "ffn_dim": 4 * hidden,
        "hidden_size": hidden,
        "layer_norm_elementwise_affine": True,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vocab_size": 50000,
        "word_embed_proj_dim": hidden,
    }


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "max_position_embeddings": 2048,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": vocab,
        **more,
    }


_GPT2_350M: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-5,
    "n_ctx": 1024,
    "n_embd": 1024,
    "n_head": 16,
    "n_layer": 24,
    "n_positions": 1024,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "vocab_size": 50257,
}

_QWEN_7B: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 4096,
    "intermediate_size": 22016,  # both halves of the MLP
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 32768,
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 151936,
}

SHAPES: Mapping[str, dict[str, Any]] = {
    "gpt2-350m": _GPT2_350M,
    "galactica-125m": _opt(12, 768, 12),
    "galactica-1.3b": _opt(24, 2048, 32),
    "galactica-6.7b": _opt(32, 4096, 32),
    "llama-7b": _llama(32, 4096, 32, 32, 11008, 32000),
    "qwen-7b": _QWEN_7B,
    "decicoder-1b": _llama(
        20,
        2048,
        32,
        4,
        5888,
        49152,
        architectures=["DeciCoderForCausalLM"],
        bos_token_id=0,
        eos_token_id=0,
        torch_dtype="bfloat16",
    ),
    "llama-15m": _llama(6, 288, 6, 6, 768, 32000, rms_norm_eps=1e-5, tie_word_embeddings=True, torch_dtype="float32"),
}
