"""GPT-2: English stories and Shakespeare, of which there is little; so dropout, and the best weights are kept."""

from tools.train.spec import Part, Recipe, Spec, Vocabulary

SPEC = Spec(
    name="tinygpt2",
    family="gpt2",
    config={
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 2047,
        "embd_pdrop": 0.1,
        "eos_token_id": 2047,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 128,
        "n_head": 4,
        "n_layer": 6,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "torch_dtype": "float16",
        "vocab_size": 2048,
    },
    generation={"bos_token_id": 2047, "eos_token_id": 2047, "pad_token_id": 2047},
    tokenizer={
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 1024,
        "tokenizer_class": "GPT2Tokenizer",
    },
    vocabulary=Vocabulary("gpt2", 2048),
    parts=(
        Part("stories", 0.65, only="tinystories"),
        Part("stories", 0.35, only="shakespeare"),
    ),
    recipe=Recipe(steps=3000, rows=32, window=1024, dropout=0.15, weight_decay=0.2, best=True),
)
