"""LLaMA, all versions: RMSNorm, rotary positions, SwiGLU; grouped queries and rope scalings as configured."""

from collections.abc import Callable

from allotrope.models.family import Family, Oracle, module
from allotrope.models.hfconfig import Values, activation, count, fixed, flag, number
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe
from allotrope.models.rope import KEYS as ROPE_KEYS
from allotrope.models.rope import read_rope

KEYS = (
    count("vocab_size"),
    count("hidden_size"),
    count("intermediate_size"),
    count("num_hidden_layers", high=1024),
    count("num_attention_heads"),
    count("num_key_value_heads", None),
    count("head_dim", None, high=4096),
    count("max_position_embeddings", 2048, aliases=("max_sequence_length",)),
    activation("hidden_act", "silu"),
    number("rms_norm_eps", 1e-6, high=1.0),
    flag("attention_bias", False),
    flag("mlp_bias", False),
    flag("tie_word_embeddings", False),
    fixed("pretraining_tp", 1, "tensor-parallel rounding of a training run is not reproduced"),
    fixed("rope_interleaved", False, "only half-split rotation is supported"),
    fixed("is_llama_config", True, "SmolLM states it, and nothing else may be meant"),
    *ROPE_KEYS,
)

Adapt = Callable[[int, Attention], Attention]


def recipe(v: Values, adapt: Adapt = lambda _, attention: attention) -> Recipe:
    """The recipe of a LLaMA-like config; a variant's `adapt` changes layer i's attention."""
    heads = v["num_attention_heads"]
    kv_heads = heads if v["num_key_value_heads"] is None else v["num_key_value_heads"]
    if heads % kv_heads:
        raise v.bad(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = v["head_dim"] or v.share("hidden_size", "num_attention_heads")
    rope = read_rope(v, head_dim)
    bias = v["attention_bias"]
    attention = Attention(heads, kv_heads, head_dim, bias=bias, out_bias=bias, rotary=rope.rotary)
    mlp = Mlp(v["intermediate_size"], v.activation("hidden_act"), gated=True, bias=v["mlp_bias"])
    norm = Norm("rms", v["rms_norm_eps"])
    return Recipe(
        vocab=v["vocab_size"],
        hidden=v["hidden_size"],
        max_len=rope.max_len,
        blocks=tuple(Block(adapt(i, attention), mlp, norm) for i in range(v["num_hidden_layers"])),
        final_norm=norm,
        tied=v["tie_word_embeddings"],
    )


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    keys=KEYS,
    recipe=recipe,
    outer=(
        module("model.embed_tokens", "embed"),
        module("model.norm", "head.norm"),
        module("lm_head", "head"),
    ),
    block="model.layers.{i}",
    inner=(
        module("input_layernorm", "attn.norm"),
        module("self_attn.q_proj", "attn.q"),
        module("self_attn.k_proj", "attn.k"),
        module("self_attn.v_proj", "attn.v"),
        module("self_attn.o_proj", "attn.o"),
        module("post_attention_layernorm", "mlp.norm"),
        module("mlp.gate_proj", "mlp.gate"),
        module("mlp.up_proj", "mlp.up"),
        module("mlp.down_proj", "mlp.down"),
    ),
    prefixes=("model.", ""),
    unused=(".rotary_emb.inv_freq",),  # follows from the config
    oracle=Oracle("LlamaConfig", "LlamaForCausalLM"),
)
