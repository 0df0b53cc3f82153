"""GPT-2: learned positions, one fused c_attn, and matrices that lie transposed (`Conv1D`)."""

from allotrope.models.family import Family, Oracle, module
from allotrope.models.hfconfig import Values, activation, count, fixed, flag, names, number
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Positions, Recipe

KEYS = (
    count("vocab_size"),
    count("n_positions", aliases=("max_position_embeddings", "n_ctx")),
    count("n_embd", aliases=("hidden_size",)),
    count("n_layer", high=1024, aliases=("num_hidden_layers",)),
    count("n_head", aliases=("num_attention_heads",)),
    count("n_inner", None),
    activation("activation_function", "gelu_new"),
    number("layer_norm_epsilon", 1e-5, high=1.0),
    flag("tie_word_embeddings", True),
    fixed("scale_attn_weights", True, "unscaled attention is not supported"),
    fixed("scale_attn_by_inverse_layer_idx", False, "scaling attention by layer is not supported"),
)

# reorder_and_upcast_attn changes only the rounding in half precision; the ops accumulate in fp32 anyway
IGNORED = names("""reorder_and_upcast_attn resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout n_special predict_special_tokens""")


def recipe(v: Values) -> Recipe:
    """The recipe of a GPT-2 config."""
    heads = v["n_head"]
    block = Block(
        attention=Attention(heads, heads, v.share("n_embd", "n_head"), bias=True, out_bias=True),
        mlp=Mlp(v["n_inner"] or 4 * v["n_embd"], v.activation("activation_function"), bias=True),
        norm=(norm := Norm("layer", v["layer_norm_epsilon"], bias=True)),
    )
    return Recipe(
        vocab=v["vocab_size"],
        hidden=v["n_embd"],
        max_len=v["n_positions"],
        blocks=(block,) * v["n_layer"],
        final_norm=norm,
        positions=Positions(v["n_positions"]),
        tied=v["tie_word_embeddings"],
    )


FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    keys=KEYS,
    ignored=IGNORED,
    recipe=recipe,
    outer=(
        module("transformer.wte", "embed"),
        module("transformer.wpe", "embed.positions"),
        module("transformer.ln_f", "head.norm"),
        module("lm_head", "head"),
    ),
    block="transformer.h.{i}",
    inner=(
        module("ln_1", "attn.norm"),
        module("attn.c_attn", "attn.q", "attn.k", "attn.v", transposed=True),
        module("attn.c_proj", "attn.o", transposed=True),
        module("ln_2", "mlp.norm"),
        module("mlp.c_fc", "mlp.up", transposed=True),
        module("mlp.c_proj", "mlp.down", transposed=True),
    ),
    prefixes=("transformer.", ""),
    unused=(".attn.bias", ".attn.masked_bias"),  # the causal mask, as old versions stored it
    oracle=Oracle("GPT2Config", "GPT2LMHeadModel"),
)
