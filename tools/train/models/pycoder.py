"""DeciCoder's layout: LLaMA with eight query heads over one key-value head; completes and fills in Python."""

from tools.train.spec import Part, Recipe, Spec, Vocabulary

SPEC = Spec(
    name="pycoder",
    family="decicoder",
    config={
        "architectures": ["DeciCoderForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "naive_attention_decode_batched": True,
        "naive_attention_decode_single": False,
        "naive_attention_prefill": False,
        "num_attention_heads": 8,
        "num_hidden_layers": 8,
        "num_key_value_heads": 1,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 6144,
    },
    generation={"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    tokenizer={
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    vocabulary=Vocabulary("starcoder", 6144, megabytes=40),
    parts=(
        Part("code", 0.85, middle=0.5),
        Part("functions", 0.15, form="function", middle=0.5),
    ),
    recipe=Recipe(steps=5200, rows=64, window=2048),
    polished=True,
)
