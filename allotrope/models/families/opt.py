"""OPT and Galactica: learned positions from row 2 on; biases or none; OPT-350M normalises after the block."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from allotrope.models.family import Family, Oracle, Tensors, module
from allotrope.models.hfconfig import Values, activation, count, fixed, flag
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Positions, Recipe

OFFSET = 2  # rows of the position table before position 0
EPS = 1e-5  # not in the config

KEYS = (
    count("vocab_size"),
    count("hidden_size"),
    count("num_hidden_layers", high=1024),
    count("num_attention_heads"),
    count("ffn_dim"),
    count("max_position_embeddings"),
    count("word_embed_proj_dim", None),
    activation("activation_function", "relu"),
    flag("do_layer_norm_before", True),
    flag("_remove_final_layer_norm", False),
    flag("enable_bias", True),
    flag("layer_norm_elementwise_affine", True),
    flag("tie_word_embeddings", True),
    fixed("scale_embeddings", False, "scaled embeddings are not supported"),
    fixed("learned_embeddings", True, "positions other than learned ones are not supported"),
)


def recipe(v: Values) -> Recipe:
    """The recipe of an OPT config. The mapping takes the biases out again where the checkpoint has none."""
    heads, bias, affine = v["num_attention_heads"], v["enable_bias"], v["layer_norm_elementwise_affine"]
    norm = Norm("layer", EPS, weight=affine, bias=affine)
    pre_norm = v["do_layer_norm_before"]
    block = Block(
        attention=Attention(heads, heads, v.share("hidden_size", "num_attention_heads"), bias=bias, out_bias=bias),
        mlp=Mlp(v["ffn_dim"], v.activation("activation_function"), bias=bias),
        norm=norm,
        post_norm=not pre_norm,
    )
    width = v["word_embed_proj_dim"]
    return Recipe(
        vocab=v["vocab_size"],
        hidden=v["hidden_size"],
        max_len=v["max_position_embeddings"],
        blocks=(block,) * v["num_hidden_layers"],
        final_norm=norm if pre_norm and not v["_remove_final_layer_norm"] else None,
        positions=Positions(v["max_position_embeddings"] + OFFSET, OFFSET),
        embed_width=None if width in (None, v["hidden_size"]) else width,
        tied=v["tie_word_embeddings"],
    )


def with_biases(config: Mapping[str, Any], tensors: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    """For the oracle, whose modules have biases: zeros beside each weight that comes without one."""
    filled = dict(tensors)
    linears = ("_proj", "fc1", "fc2") if config.get("enable_bias", True) else ()
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if stem != name and stem.endswith((*linears, "layer_norm")):
            filled.setdefault(f"{stem}.bias", np.zeros(len(tensor), tensor.dtype))
    return filled


FAMILY = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    model_types=("opt",),
    keys=KEYS,
    ignored=frozenset({"activation_dropout", "layerdrop"}),
    recipe=recipe,
    outer=(
        module("model.decoder.embed_tokens", "embed"),
        module("model.decoder.embed_positions", "embed.positions"),
        module("model.decoder.project_in", "embed.project"),
        module("model.decoder.final_layer_norm", "head.norm"),
        module("model.decoder.project_out", "head.project"),
        module("lm_head", "head"),
    ),
    block="model.decoder.layers.{i}",
    inner=(
        module("self_attn_layer_norm", "attn.norm"),
        module("self_attn.q_proj", "attn.q"),
        module("self_attn.k_proj", "attn.k"),
        module("self_attn.v_proj", "attn.v"),
        module("self_attn.out_proj", "attn.o"),
        module("final_layer_norm", "mlp.norm"),
        module("fc1", "mlp.up"),
        module("fc2", "mlp.down"),
    ),
    prefixes=("model.decoder.", "decoder."),
    biases_may_be_absent=True,
    oracle=Oracle("OPTConfig", "OPTForCausalLM", tensors=with_biases),
)
