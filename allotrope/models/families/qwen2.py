"""Qwen2 and 2.5: LLaMA with biases on q, k and v, and a sliding window on the upper layers if asked for."""

from dataclasses import replace

from allotrope.models.families import llama
from allotrope.models.family import Oracle
from allotrope.models.hfconfig import Key, Values, count, fixed, flag, tree
from allotrope.models.recipe import Attention, Recipe

FULL, SLIDING = "full_attention", "sliding_attention"


def windows(v: Values) -> tuple[int | None, ...]:
    """Each layer's window: by `layer_types`, or for the layers from `max_window_layers` on."""
    layers, window = v["num_hidden_layers"], v["sliding_window"] if v["use_sliding_window"] else None
    kinds = v["layer_types"]
    if kinds is None:
        return tuple(window if i >= v["max_window_layers"] else None for i in range(layers))
    if len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
        raise v.bad(f"layer_types names {len(kinds)} layers, {layers} of them {FULL} or {SLIDING} are needed")
    if SLIDING in kinds and window is None:
        raise v.bad(f"layer_types has {SLIDING} but sliding_window is off")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def recipe(v: Values) -> Recipe:
    """LLaMA's with biases on q, k, v."""
    window = windows(v)

    def adapt(i: int, attention: Attention) -> Attention:
        return replace(attention, bias=True, out_bias=False, window=window[i])

    return llama.recipe(v, adapt)


FAMILY = llama.FAMILY.derive(
    "qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    keys=(
        flag("use_sliding_window", False),
        Key("sliding_window", int, 4096, null=True),
        count("max_window_layers", 28, low=0),
        tree("layer_types", list),
        fixed("use_mrope", False, "positions in several dimensions are for pictures"),
        count("num_key_value_heads", 32),
        count("max_position_embeddings", 32768),
        fixed("attention_bias", True, "the architecture has biases on q, k and v"),
        fixed("mlp_bias", False, "the architecture has no such biases"),
    ),
    recipe=recipe,
    oracle=Oracle("Qwen2Config", "Qwen2ForCausalLM"),
)
