"""Galactica: OPT's layout without biases; technical prose."""

from tools.train.spec import Part, Recipe, Spec, Vocabulary


def config(hidden: int, heads: int, ffn: int, layers: int) -> dict[str, object]:
    """Galactica's config.json at some size."""
    return {
        "_remove_final_layer_norm": False,
        "activation_function": "gelu",
        "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.1,
        "bos_token_id": 0,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "enable_bias": False,
        "eos_token_id": 2,
        "ffn_dim": ffn,
        "hidden_size": hidden,
        "init_std": 0.02,
        "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0,
        "learned_embeddings": True,
        "max_position_embeddings": 2048,
        "model_type": "opt",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "scale_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 2048,
        "word_embed_proj_dim": hidden,
    }


GENERATION = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
TOKENIZER = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "model_max_length": 2048,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
PARTS = (Part("docs", 1.0),)

SPEC = Spec(
    name="tinygal",
    family="opt",
    config=config(hidden=192, heads=6, ffn=704, layers=5),
    generation=GENERATION,
    tokenizer=TOKENIZER,
    vocabulary=Vocabulary("galactica", 2048),
    parts=PARTS,
    recipe=Recipe(steps=3400, rows=48, window=2048, noise=1.0, logit_limit=24.0),
)
