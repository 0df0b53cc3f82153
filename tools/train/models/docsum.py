"""LLaMA: a Python function, then " TL;DR:", then the first sentence of its docstring."""

from tools.train.spec import Part, Recipe, Spec, Vocabulary

SPEC = Spec(
    name="docsum",
    family="llama",
    config={
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 7,
        "num_key_value_heads": 6,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 4096,
    },
    generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    tokenizer={
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 2048,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    },
    vocabulary=Vocabulary("sentencepiece", 4096, megabytes=8),
    parts=(
        Part("functions", 0.7, form="summary"),
        Part("code", 0.3),
    ),
    recipe=Recipe(steps=3600, rows=32, window=2048, best=True),
)
