"""Qwen3: Qwen2 with a norm over each head of q and k, and biases only if asked for."""

from dataclasses import replace

from allotrope.models.families import llama, qwen2
from allotrope.models.family import Oracle, module
from allotrope.models.hfconfig import Values, count, flag
from allotrope.models.recipe import Attention, Norm, Recipe


def recipe(v: Values) -> Recipe:
    """LLaMA's with Qwen2's windows and a norm over each head."""
    window, norm = qwen2.windows(v), Norm("rms", v["rms_norm_eps"])

    def adapt(i: int, attention: Attention) -> Attention:
        return replace(attention, qk_norm=norm, window=window[i])

    return llama.recipe(v, adapt)


FAMILY = qwen2.FAMILY.derive(
    "qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    keys=(count("head_dim", 128, high=4096), flag("attention_bias", False)),
    inner=(module("self_attn.q_norm", "attn.q_norm"), module("self_attn.k_norm", "attn.k_norm")),
    recipe=recipe,
    oracle=Oracle("Qwen3Config", "Qwen3ForCausalLM"),
)
