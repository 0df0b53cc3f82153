"""Mistral: LLaMA with a sliding window on every layer, and no biases."""

from dataclasses import replace

from allotrope.models.families import llama
from allotrope.models.family import Oracle
from allotrope.models.hfconfig import Key, Values, count, fixed
from allotrope.models.recipe import Recipe


def recipe(v: Values) -> Recipe:
    """LLaMA's, each query seeing `sliding_window` keys, itself included."""
    return llama.recipe(v, lambda _, attention: replace(attention, window=v["sliding_window"]))


FAMILY = llama.FAMILY.derive(
    "mistral",
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    keys=(
        Key("sliding_window", int, 4096, null=True),  # null: no window; absent: what transformers assumes
        count("num_key_value_heads", 8),
        count("max_position_embeddings", 131072),
        fixed("attention_bias", False, "the architecture has no biases"),
        fixed("mlp_bias", False, "the architecture has no biases"),
    ),
    recipe=recipe,
    oracle=Oracle("MistralConfig", "MistralForCausalLM"),
)
