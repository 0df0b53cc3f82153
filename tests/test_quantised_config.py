"""What a `quantization_config` may say, each published shape of it, and the words for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotrope.errors import CheckpointError
from allotrope.models.model import open_model
from allotrope.models.quantised.config import find, parse
from allotrope.models.quantised.patterns import matches, problem
from allotrope.models.quantised.stored import Stored
from tests.tiny import rewrite_config, tiny

# Qwen-7B-Chat-Int4: the settings of Qwen's run_gptq.py, under the keys that AutoGPTQ and transformers write
QWEN_INT4 = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
    "disable_exllama": True,
}
GPTQMODEL = {
    "bits": 8,
    "group_size": 32,
    "desc_act": True,
    "sym": False,
    "lm_head": False,
    "quant_method": "gptq",
    "checkpoint_format": "gptq_v2",
    "format": "gptq_v2",
    "pack_dtype": "int32",
    "pack_impl": "cpu",
    "meta": {"quantizer": ["gptqmodel:5.6.12"], "mse": 0.0},
    "dynamic": {r"-:.*\.mlp\.gate": {}},
}
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 64,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": ["lm_head"],
    "do_fuse": False,
    "backend": "autoawq",
}
WEIGHTS = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 128,
    "dynamic": False,
    "actorder": None,
    "block_structure": None,
    "observer": "minmax",
    "observer_kwargs": {},
}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None, "output_activations": None}


def compressed(form: str = "pack-quantized", acts: Any = None, **weights: Any) -> dict[str, Any]:
    """A config as llm-compressor writes it."""
    group = {**GROUP, "weights": {**WEIGHTS, **weights}, "input_activations": acts}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "version": "0.9",
        "sparsity_config": {},
        "transform_config": {},
        "global_compression_ratio": 1.5,
    }


CT = "compressed-tensors"
W8A8 = {"num_bits": 8, "strategy": "channel", "group_size": None}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "group_size": None}
READ: list[tuple[dict[str, Any], Stored, str, str]] = [
    (QWEN_INT4, Stored("gptq", 4, 128, True, zero_offset=1), "int4", "gptq weights (int4, groups of 128)"),
    (
        GPTQMODEL,
        Stored("gptq", 8, 32, False, desc_act=True, ignore=(r"re:.*\.mlp\.gate",)),
        "uint8",
        "gptq weights (uint8, groups of 32)",
    ),
    (
        {"quant_method": "gptq", "w_bit": 4, "q_group_size": -1, "sym": True, "desc_act": False},
        Stored("gptq", 4, -1, True, zero_offset=1),
        "int4",
        "gptq weights (int4, one scale per channel)",
    ),
    (AWQ, Stored("awq", 4, 64, False, ignore=("lm_head",)), "uint4", "awq weights (uint4, groups of 64)"),
    (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"},
        Stored("awq", 4, 128, False),
        "uint4",
        "awq weights (uint4, groups of 128)",
    ),
    (
        compressed(),
        Stored(CT, 4, 128, True, form="pack-quantized", ignore=("lm_head",)),
        "int4",
        "compressed-tensors weights (int4, groups of 128)",
    ),
    (
        compressed(symmetric=False, actorder="group", strategy=None, group_size=32),
        Stored(CT, 4, 32, False, desc_act=True, form="pack-quantized", ignore=("lm_head",)),
        "int4",
        "compressed-tensors weights (int4, groups of 32)",
    ),
    (
        compressed("int-quantized", TOKEN, **W8A8),
        Stored(CT, 8, -1, True, form="int-quantized", activations="int8", ignore=("lm_head",)),
        "int8",
        "compressed-tensors weights (int8, one scale per channel)",
    ),
    (
        compressed("float-quantized", {**TOKEN, "type": "float"}, **FP8),
        Stored(
            *(CT, 8, -1, True),
            form="float-quantized",
            floating=True,
            per_tensor=True,
            activations="fp8",
            ignore=("lm_head",),
        ),
        "fp8",
        "compressed-tensors weights (fp8, one scale per tensor)",
    ),
]


@pytest.mark.parametrize(("said", "stored", "number", "words"), READ, ids=range(len(READ)))
def test_what_is_published_is_read(said: dict[str, Any], stored: Stored, number: str, words: str) -> None:
    found = parse(said)
    assert found == stored
    assert (found.number, found.words) == (number, words)


def test_the_method_has_two_names(tmp_path: Path) -> None:
    newer = {name: value for name, value in GPTQMODEL.items() if name != "quant_method"} | {"method": "gptq"}
    assert parse(newer) == parse({**newer, "quant_method": "gptq", "hyb_act": False}) == parse(GPTQMODEL)
    with pytest.raises(CheckpointError, match="quant_method 'awq' and method 'gptq' contradict each other; keep the"):
        parse({**AWQ, "method": "gptq"})
    (tmp_path / "quantize_config.json").write_text(json.dumps(newer))
    assert find({}, tmp_path) == parse(GPTQMODEL)


def test_what_older_tools_called_frozen_is_stored_alike() -> None:
    assert parse({**compressed(), "quantization_status": "frozen"}) == parse(compressed())


def test_groups_that_are_stored_alike_are_one() -> None:
    both = compressed()
    first = {**GROUP, "targets": ["re:.*q_proj"]}
    both["config_groups"] = {"a": first, "b": {**GROUP, "targets": ["model.layers.0.mlp.up_proj"]}}
    stored = parse(both)
    assert stored.targets == ("re:.*q_proj", "model.layers.0.mlp.up_proj")
    assert [stored.targeted(f"model.layers.0.{name}") for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.gate")] == [
        True,
        True,
        False,
    ]


def in_group(**changes: Any) -> dict[str, Any]:
    return {**compressed(), "config_groups": {"g": {**GROUP, **changes}}}


PATH = "quantization_config"
REFUSED: list[tuple[Any, str]] = [
    ("gptq", f"{PATH} is 'gptq', not an object"),
    ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, ".quant_method is 'bitsandbytes'"),
    *(({"quant_method": name}, f".quant_method is {name!r}") for name in ("aqlm", "exl2", "gguf", "fp8", "hqq", None)),
    ({"quant_method": "x"}, "it must be 'gptq', 'awq' or 'compressed-tensors'; give the original checkpoint instead"),
    # GPTQ
    ({**QWEN_INT4, "bits": 3}, ".bits is 3, which is not supported: it must be 4 or 8; give the original"),
    ({**QWEN_INT4, "bits": 2}, ".bits is 2"),
    ({**QWEN_INT4, "bits": 4.0}, ".bits is 4.0, which is not supported: it must be a whole number"),
    ({**QWEN_INT4, "bits": True}, ".bits is True"),
    ({**QWEN_INT4, "w_bit": 8}, "bits 4 and w_bit 8 contradict each other; keep the one that is right"),
    ({**QWEN_INT4, "group_size": 0}, ".group_size is 0"),
    ({**QWEN_INT4, "group_size": -2}, ".group_size is -2, outside -1 to 65536"),
    ({**QWEN_INT4, "sym": "yes"}, ".sym is 'yes', not true or false"),
    ({key: value for key, value in QWEN_INT4.items() if key != "sym"}, ".sym is missing"),
    ({**QWEN_INT4, "checkpoint_format": "marlin"}, ".checkpoint_format is 'marlin', which is not supported"),
    (
        {**QWEN_INT4, "format": "bitblas"},
        ".format is 'bitblas', which is not supported: it must be 'gptq' or 'gptq_v2'",
    ),
    ({**QWEN_INT4, "backend": "marlin"}, ".backend is 'marlin'"),
    ({**QWEN_INT4, "is_marlin_format": True}, ".is_marlin_format is True"),
    ({**QWEN_INT4, "pack_dtype": "int8"}, ".pack_dtype is 'int8'"),
    ({**QWEN_INT4, "dynamic": {"+:.*": {"bits": 8}}}, ".dynamic is {'+:.*': {'bits': 8}}"),
    ({**QWEN_INT4, "dynamic": {"-:(a+)+b": {}}}, ".dynamic is '-:(a+)+b', which is not supported: an expression is"),
    ({**QWEN_INT4, "adapter": {"name": "lora"}}, "unknown key quantization_config.adapter ({'name': 'lora'}) could"),
    # AWQ
    ({**AWQ, "bits": 8}, ".bits is 8, which is not supported: it must be 4"),
    ({**AWQ, "version": "gemv"}, ".version is 'gemv', which is not supported: it must be 'gemm' or 'GEMM'"),
    ({**AWQ, "version": "exllama"}, ".version is 'exllama'"),
    ({**AWQ, "backend": "llm-awq"}, ".backend is 'llm-awq'"),
    ({**AWQ, "zero_point": False}, ".zero_point is False, which is not supported: it must be True"),
    ({**AWQ, "modules_to_not_convert": [7]}, ".modules_to_not_convert is 7, which is not supported: each entry must"),
    # compressed-tensors
    (compressed("marlin-24"), ".format is 'marlin-24', which is not supported: it must be 'pack-quantized' or"),
    (compressed("nvfp4-pack-quantized"), ".format is 'nvfp4-pack-quantized'"),
    (compressed("mixed-precision"), ".format is 'mixed-precision'"),
    (compressed(type="float"), ".weights.type is 'float', which is not supported: pack-quantized holds int"),
    (compressed("float-quantized"), ".weights.type is 'int', which is not supported: float-quantized holds float"),
    (compressed(num_bits=3), "config_groups.group_0.weights.num_bits is 3, which is not supported: it must be 4 or 8"),
    (compressed("float-quantized", **{**FP8, "num_bits": 4}), ".num_bits is 4, which is not supported: it must be 8"),
    (compressed("float-quantized", **{**FP8, "symmetric": False}), ".weights.symmetric is False"),
    (compressed(strategy="block"), ".strategy is 'block', which is not supported: it must be 'tensor', 'channel' or"),
    (compressed(block_structure=[128, 128]), ".block_structure is [128, 128]"),
    (compressed(strategy="channel"), ".group_size is 128, which is not supported: strategy 'channel' cannot have it"),
    (compressed(group_size=None), ".group_size is None, which is not supported: strategy 'group' cannot have it"),
    (compressed(group_size=0), ".group_size is 0"),
    (compressed(dynamic=True), ".weights.dynamic is True"),
    (compressed(actorder=["group"]), ".actorder is ['group']"),
    (compressed(actorder="random"), ".actorder is 'random', which is not supported: it must be 'group', 'weight' or"),
    (compressed(**W8A8, actorder="group"), ".actorder is 'group', which is not supported: only groups can be ordered"),
    (compressed(rotation=True), "unknown key quantization_config.config_groups.group_0.weights.rotation (True)"),
    (
        compressed(acts={**TOKEN, "dynamic": False}),
        ".input_activations.dynamic is False, which is not supported: it must",
    ),
    (compressed(acts={**TOKEN, "dynamic": "local"}), ".input_activations.dynamic is 'local'"),
    (compressed(acts={**TOKEN, "strategy": "tensor"}), ".input_activations.strategy is 'tensor'"),
    (compressed(acts={**TOKEN, "num_bits": 4}), ".input_activations.num_bits is 4"),
    (compressed(acts={**TOKEN, "symmetric": False}), ".input_activations.symmetric is False"),
    (compressed(acts={**TOKEN, "type": "float"}), ".input_activations.type is 'float'"),
    (
        {**compressed(), "kv_cache_scheme": {"num_bits": 8}},
        ".kv_cache_scheme is {'num_bits': 8}, which is not supported",
    ),
    ({**compressed(), "quantization_status": "calibration"}, ".quantization_status is 'calibration'"),
    ({**compressed(), "sparsity_config": {"format": "sparse-24-bitmask"}}, ".sparsity_config is {'format': 'sparse-24"),
    ({**compressed(), "transform_config": {"config_groups": {"u": {}}}}, ".transform_config is {'config_groups'"),
    ({**compressed(), "ignore": ["re:(?=x).*"]}, ".ignore is 're:(?=x).*', which is not supported: an expression is"),
    ({**compressed(), "ignore": ["x" * 301]}, "an entry has at most 300 characters"),
    ({**compressed(), "config_groups": {}}, ".config_groups is {}, which is not supported: it must have a group"),
    ({**compressed(), "config_groups": {"W8A8": ["Linear"]}}, ".config_groups.W8A8 is ['Linear']"),
    (
        {**compressed(), "config_groups": {"a": GROUP, "b": {**GROUP, "weights": {**WEIGHTS, "group_size": 32}}}},
        "mixes compressed-tensors weights (int4, groups of 128) and compressed-tensors weights (int4, groups of 32), "
        "which is not supported: all must be stored alike; give the original",
    ),
    (in_group(targets=["Embedding"]), ".targets is 'Embedding', which is not supported: of the classes only 'Linear'"),
    (in_group(output_activations=TOKEN), ".output_activations is {"),
    (
        in_group(format="int-quantized"),
        ".format is 'int-quantized', which is not supported: it must be 'pack-quantized'",
    ),
    (in_group(weights=None), ".config_groups.g.weights is missing"),
]


@pytest.mark.parametrize(("said", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_supported_is_refused_in_words(said: Any, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(said, "there/config.json")
    message = str(caught.value)
    assert words in message
    assert message.startswith("there/config.json: ") and "\n" not in message and len(message) < 400


def test_a_gptq_file_of_its_own_is_read_and_must_agree(tmp_path: Path) -> None:
    beside = {key: value for key, value in QWEN_INT4.items() if key != "quant_method"}
    file = tmp_path / "quantize_config.json"
    assert find({}, tmp_path) is None
    file.write_text(json.dumps(beside))
    stored = Stored("gptq", 4, 128, True, zero_offset=1)
    assert find({}, tmp_path) == stored
    assert find({PATH: QWEN_INT4}, tmp_path) == stored
    assert find({PATH: QWEN_INT4}, None) == stored
    file.write_text(json.dumps({**beside, "desc_act": True, "group_size": 64}))
    with pytest.raises(CheckpointError) as caught:
        find({PATH: QWEN_INT4}, tmp_path)
    assert "(int4, groups of 64), act-order, zeros less one, but config.json says gptq weights (int4, groups of" in str(
        caught.value
    )
    file.write_text(json.dumps({**beside, "bits": 3}))
    with pytest.raises(CheckpointError, match=r"quantize_config\.json: quantize_config\.bits is 3"):
        find({}, tmp_path)


def test_what_a_config_claims_must_be_there(tmp_path: Path) -> None:
    """In config.json or beside it; a checkpoint that is not quantised is not taken for one that is."""
    folder = tiny("llama", tmp_path)
    absent = r"the config says gptq weights \(int4, groups of 128\), but no tensor is called \*\.qweight; download"
    rewrite_config(folder, lambda config: {**config, "quantization_config": QWEN_INT4})
    with pytest.raises(CheckpointError, match=absent):
        open_model(folder)
    rewrite_config(folder, lambda config: {**config, "quantization_config": {**QWEN_INT4, "bits": 3}})
    with pytest.raises(CheckpointError, match=r"quantization_config\.bits is 3, which is not supported: it must be 4"):
        open_model(folder)
    rewrite_config(folder, lambda config: {**config, "quantization_config": None})
    open_model(folder)
    (folder / "quantize_config.json").write_text(json.dumps(QWEN_INT4))
    with pytest.raises(CheckpointError, match=absent):
        open_model(folder)


NAMES = (
    "lm_head",
    "lm_head.x",
    "lm_headx",
    "model.lm_head",
    "a.mlp.gate",
    "a.mlp.gate_proj",
    "layers.12.q",
    "layers.x.q",
)


@pytest.mark.parametrize(
    "pattern",
    [
        ".*lm_head",
        "lm_head$",
        "^lm_head",
        r".*mlp\.gate$",
        "(a|model).mlp",
        r"layers\.\d+\.q",
        r"layers.\d.",
        "(?:l|a).*(q|gate)$",
    ],
)
def test_an_expression_means_what_it_means_in_python(pattern: str) -> None:
    assert problem(f"re:{pattern}") is None
    for name in NAMES:
        assert matches(f"re:{pattern}", name, below=False) is (re.match(pattern, name) is not None), name


@given(
    st.lists(
        st.sampled_from(["a", "b", ".", ".*", r"\.", r"\d", r"\d+", "(a|bb)", "(?:b|a.)", "$", "^", "7"]), max_size=7
    ),
    st.text("ab.7", max_size=9),
)
def test_any_expression_taken_means_what_it_means_in_python(tokens: list[str], name: str) -> None:
    pattern = "".join(tokens)
    assert problem(f"re:{pattern}") is None
    assert matches(f"re:{pattern}", name, below=False) is (re.match(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "a*", "a{9}", "[ab]", "(a|b)*", "(?=a)", r"\w", "a|b", ".+", "(a", ".*?", "a\n"]
)
def test_an_expression_beyond_that_is_not_taken(pattern: str) -> None:
    assert problem(f"re:{pattern}")


def test_a_long_match_takes_no_time() -> None:
    hostile = "re:" + ".*a" * 90 + "b"
    assert problem(hostile) is None
    assert not matches(hostile, "a" * 250, below=False)


def test_a_name_means_what_its_tool_means_by_it() -> None:
    for below, found in ((True, ["lm_head", "lm_head.x", "model.lm_head"]), (False, ["lm_head"])):
        assert [name for name in NAMES if matches("lm_head", name, below=below)] == found
    assert Stored("awq", 4, 64, False, ignore=("visual",)).ignores("model.visual.q") == "visual"
    assert Stored(CT, 4, 64, True, ignore=("visual",)).ignores("model.visual.q") is None
