"""Config files: real ones of transformers 4 and 5 load, lying ones are refused in words, before anything is made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers

from allotrope.errors import CheckpointError
from allotrope.models import family
from allotrope.models.hfconfig import ACTIVATIONS, MANDATORY
from allotrope.models.recipe import Recipe, slots

CONFIGS = Path(__file__).parent / "configs"

# As the publishers state them, weights of a tied head counted once.
PARAMETERS = {
    "gpt2": 124_439_808,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "galactica-125m": 125_030_400,
    "galactica-1.3b": 1_315_201_024,
    "galactica-6.7b": 6_657_359_872,
    "llama-1-7b": 6_738_415_616,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "qwen-7b-chat": 7_721_324_544,
    "decicoder-1b": 1_113_671_680,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen3-0.6b": 596_049_920,
}


def load(name: str, **changes: Any) -> dict[str, Any]:
    """A published config, with changes."""
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}


def recipe_of(config: dict[str, Any]) -> Recipe:
    """The recipe that a config means."""
    found = family.choose(config)
    return found.recipe(found.values(config))


def refusal(config: dict[str, Any]) -> str:
    """The message with which a config is refused."""
    with pytest.raises(CheckpointError) as caught:
        recipe_of(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_every_published_config_is_listed() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_configs_load(name: str) -> None:
    shapes = slots(recipe_of(load(name)))
    assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS[name]


def test_what_published_configs_mean() -> None:
    opt = recipe_of(load("opt-350m"))
    assert (opt.embed_width, opt.final_norm, opt.blocks[0].post_norm) == (512, None, True)
    assert opt.positions is not None and (opt.positions.size, opt.positions.offset) == (2050, 2)
    qwen = recipe_of(load("qwen-7b-chat")).blocks[0]
    assert qwen.attention.rotary is not None and qwen.attention.rotary.scaling == "qwen_ntk"
    assert (qwen.mlp.width, qwen.attention.logn) == (11008, 8192)
    assert recipe_of(load("decicoder-1b")).cache_shape == (20, 4, 64)
    assert {block.attention.window for block in recipe_of(load("mistral-7b-v0.1")).blocks} == {4096}
    assert {block.attention.window for block in recipe_of(load("qwen2-7b")).blocks} == {None}
    llama = recipe_of(load("llama-3.1-8b-instruct"))
    assert llama.blocks[0].attention.rotary is not None and llama.max_len == 131072
    assert llama.blocks[0].attention.rotary.numbers == {
        "factor": 8.0,
        "low_freq": 1.0,
        "high_freq": 4.0,
        "original_len": 8192,
    }
    qwen3 = recipe_of(load("qwen3-0.6b")).blocks[0].attention
    assert qwen3.qk_norm is not None and (qwen3.head_dim, qwen3.bias) == (128, False)


NATIVE = {"gpt2": "GPT2", "opt": "OPT", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@pytest.mark.parametrize("name", NATIVE)
def test_configs_that_transformers_writes_today_load(name: str, tmp_path: Path) -> None:
    config_class = getattr(transformers, f"{NATIVE[name]}Config")
    config_class().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert family.choose(written).name == name  # by model_type: a bare config names no architecture
    assert recipe_of(written) == recipe_of({**written, "dtype": "bfloat16"})


@pytest.mark.parametrize("name", NATIVE)
def test_a_key_left_out_means_what_transformers_takes_it_to_mean(name: str) -> None:
    theirs = getattr(transformers, f"{NATIVE[name]}Config")()
    checked = 0
    for key in family.by_name(name).keys:
        if key.default is MANDATORY or not hasattr(theirs, key.name) or key.name.startswith("rope_"):
            continue
        value = getattr(theirs, key.name)
        if key.default is None:  # worked out from other keys, on both sides
            continue
        if (name, key.name) in {("qwen2", "sliding_window"), ("qwen3", "sliding_window")}:
            assert value is None and theirs.use_sliding_window is False  # they clear it; we look at the flag
            continue
        assert key.default == value, key.name
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_oracle_understands_a_published_config_as_we_do(name: str) -> None:
    config = load(name)
    found, recipe = family.choose(config), recipe_of(config)
    theirs = getattr(transformers, found.oracle.config_class)(**found.oracle.config(config))
    ours = recipe.blocks[0].attention
    assert (theirs.num_hidden_layers, theirs.hidden_size) == (len(recipe.blocks), recipe.hidden)
    assert (theirs.vocab_size, theirs.num_attention_heads) == (recipe.vocab, ours.heads)
    assert getattr(theirs, "num_key_value_heads", ours.heads) == ours.kv_heads
    assert getattr(theirs, "intermediate_size", recipe.blocks[0].mlp.width) == recipe.blocks[0].mlp.width
    assert theirs.tie_word_embeddings is recipe.tied
    if ours.rotary is not None:
        kind = theirs.rope_parameters["rope_type"]
        assert theirs.rope_parameters["rope_theta"] == ours.rotary.base
        assert kind == {"none": "default", "qwen_ntk": "default"}.get(ours.rotary.scaling, ours.rotary.scaling)
        assert theirs.rope_parameters.get("factor") == ours.rotary.numbers.get("factor")


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 4.0}])
def test_old_and_new_ways_to_write_rope_mean_the_same(scaling: dict[str, Any]) -> None:
    old = load("llama-2-7b", rope_theta=5e5, rope_scaling=scaling)
    new = load("llama-2-7b", rope_parameters={"rope_theta": 5e5, **scaling})
    del new["rope_scaling"]
    assert recipe_of(old) == recipe_of(new)
    assert recipe_of(old).max_len == (16384 if "rope_type" in scaling else 4096)


def test_layer_types_and_the_older_keys_mean_the_same() -> None:
    old = load("qwen2-7b", use_sliding_window=True, sliding_window=512, max_window_layers=20)
    kinds = ["full_attention"] * 20 + ["sliding_attention"] * 8
    new = {**old, "layer_types": kinds, "max_window_layers": 0}
    assert recipe_of(old) == recipe_of(new)
    assert [block.attention.window for block in recipe_of(old).blocks] == [None] * 20 + [512] * 8


@pytest.mark.parametrize(("theirs", "ours"), ACTIVATIONS.items())
def test_activation_names_compute_what_transformers_computes(theirs: str, ours: str) -> None:
    import torch
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 257, dtype=torch.float64)
    plain = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
    }[ours]
    torch.testing.assert_close(ACT2FN[theirs](x), plain(x), rtol=1e-9, atol=1e-10)


LIES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    # heads, sizes
    ("llama-1-7b", {"num_attention_heads": 33}, ("hidden_size 4096", "num_attention_heads 33")),
    ("llama-2-70b", {"num_key_value_heads": 7}, ("num_attention_heads 64", "num_key_value_heads 7")),
    ("gpt2", {"n_head": 7}, ("n_embd 768", "n_head 7")),
    ("opt-125m", {"num_attention_heads": 5}, ("hidden_size 768", "num_attention_heads 5")),
    ("qwen-7b-chat", {"kv_channels": 64}, ("hidden_size 4096", "kv_channels 64")),
    ("qwen-7b-chat", {"intermediate_size": 22017}, ("intermediate_size 22017", "even")),
    ("llama-2-7b", {"num_hidden_layers": -1}, ("num_hidden_layers is -1", "1 to 1024")),
    ("llama-2-7b", {"num_hidden_layers": 10**9}, ("num_hidden_layers is 1000000000",)),
    ("llama-2-7b", {"num_hidden_layers": 10**400}, ("num_hidden_layers", "over 60 digits")),
    ("llama-2-7b", {"hidden_size": 0}, ("hidden_size is 0",)),
    ("llama-2-7b", {"hidden_size": 2**62}, ("hidden_size",)),
    ("llama-2-7b", {"vocab_size": 32000.0}, ("vocab_size is 32000.0", "whole number")),
    ("llama-2-7b", {"vocab_size": True}, ("vocab_size is True", "whole number")),
    ("llama-2-7b", {"vocab_size": None}, ("vocab_size is None",)),
    ("llama-2-7b", {"intermediate_size": "11008"}, ("intermediate_size", "'11008'")),
    ("llama-2-7b", {"head_dim": 65}, ("65", "odd")),
    ("llama-2-7b", {"rms_norm_eps": math.nan}, ("rms_norm_eps is nan", "finite")),
    ("llama-2-7b", {"rms_norm_eps": -1e-5}, ("rms_norm_eps is -1e-05",)),
    ("gpt2", {"n_ctx": 2048}, ("n_positions 1024", "n_ctx 2048")),
    # rope
    ("llama-2-7b", {"rope_theta": math.nan}, ("rope_theta is nan",)),
    ("llama-2-7b", {"rope_theta": math.inf}, ("rope_theta is inf",)),
    ("llama-2-7b", {"rope_theta": 0}, ("rope_theta is 0",)),
    ("llama-2-7b", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, ("10000.0", "500000.0")),
    ("llama-2-7b", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ("yarn", "linear", "llama3")),
    ("llama-2-7b", {"rope_scaling": {"rope_type": "longrope"}}, ("longrope", "supported are")),
    ("llama-2-7b", {"rope_scaling": {"type": ["linear"]}}, ("linear", "supported are")),
    ("llama-2-7b", {"rope_scaling": {"type": "linear"}}, ("linear lacks factor",)),
    ("llama-2-7b", {"rope_scaling": {"type": "linear", "factor": math.nan}}, ("factor is nan",)),
    ("llama-2-7b", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, ("unknown key beta (1)",)),
    ("llama-2-7b", {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, ("contradict",)),
    ("llama-2-7b", {"rope_scaling": "linear"}, ("rope_scaling", "an object")),
    ("llama-2-7b", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor is 0.5", "1.0")),
    # what changes the mathematics and is not supported
    ("llama-2-7b", {"logit_scale": 0.5}, ("unknown key logit_scale (0.5)", "remove it")),
    ("llama-2-7b", {"pretraining_tp": 2}, ("pretraining_tp is 2",)),
    ("llama-2-7b", {"hidden_act": "mish"}, ("hidden_act is 'mish'", "'silu'")),
    ("llama-2-7b", {"quantization_config": {"quant_method": "gptq"}}, ("gptq", "original checkpoint")),
    ("llama-2-7b", {"is_encoder_decoder": True}, ("is_encoder_decoder is True", "decoder-only")),
    ("gpt2", {"add_cross_attention": True}, ("add_cross_attention is True",)),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx is True",)),
    ("gpt2", {"scale_attn_weights": 1}, ("scale_attn_weights is 1",)),
    ("opt-125m", {"scale_embeddings": True}, ("scale_embeddings is True",)),
    ("qwen-7b-chat", {"no_bias": False}, ("no_bias is False", "c_attn")),
    ("qwen-7b-chat", {"rotary_pct": 0.25}, ("rotary_pct is 0.25",)),
    ("qwen-7b-chat", {"use_cache_quantization": True}, ("use_cache_quantization is True",)),
    ("mistral-7b-v0.1", {"attention_bias": True}, ("attention_bias is True",)),
    ("qwen2-7b", {"layer_types": ["sliding_attention"] * 28}, ("sliding_window is off",)),
    ("qwen2-7b", {"layer_types": ["full_attention"]}, ("layer_types names 1 layers", "28")),
    # code, and what nobody knows
    ("llama-2-7b", {"trust_remote_code": True}, ("trust_remote_code", "never run", "LlamaForCausalLM")),
    ("llama-2-7b", {"auto_map": {"AutoConfig": "evil.Config"}}, ("'evil.Config'", "never run", "LlamaForCausalLM")),
    ("llama-2-7b", {"auto_map": "evil.Config"}, ("'evil.Config'", "never run")),
    ("qwen-7b-chat", {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Q"}}, ("'modeling_evil.Q'", "never run")),
    ("qwen-7b-chat", {"auto_map": {"AutoTokenizer": "configuration_qwen.QWenConfig"}}, ("never run",)),
    ("llama-2-7b", {"architectures": ["GemmaForCausalLM"]}, ("GemmaForCausalLM", "LlamaForCausalLM", "GPT2LMHead")),
    ("llama-2-7b", {"architectures": None, "model_type": "gemma"}, ("'gemma'", "supported are")),
    ("llama-2-7b", {"architectures": None, "model_type": None}, ("None", "supported are")),
    ("llama-2-7b", {"architectures": "LlamaForCausalLM"}, ("not a list",)),
    ("llama-2-7b", {"architectures": ["X" * 100_000]}, ("not supported",)),
]


@pytest.mark.parametrize(("name", "changes", "words"), LIES, ids=[f"{n}-{next(iter(c))}" for n, c, _ in LIES])
def test_what_cannot_be_is_refused_with_the_values_named(
    name: str, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refusal(load(name, **changes))
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2", "opt-125m", "qwen-7b-chat", "qwen3-0.6b"])
def test_a_mandatory_key_left_out_is_named(name: str) -> None:
    config = load(name)
    mandatory = [key for key in family.choose(config).keys if key.default is MANDATORY]
    assert len(mandatory) >= 5
    for key in mandatory:
        short = {k: v for k, v in config.items() if k not in (key.name, *key.aliases)}
        assert f"{key.name} is missing" in refusal(short)


def test_an_architecture_counts_for_more_than_a_model_type() -> None:
    assert family.choose(load("decicoder-1b")).name == "decicoder"  # whose model_type is llama's
    assert family.choose(load("llama-2-7b", architectures=[])).name == "llama"
