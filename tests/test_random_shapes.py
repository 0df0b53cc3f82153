"""`random:SHAPE`: real shapes, published names, and the same values however they are asked for."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import transformers

from allotrope.errors import AllotropeError
from allotrope.models.dtypes import cast, find_nonfinite
from allotrope.models.readers.open import open_checkpoint
from allotrope.models.readers.random_shapes import SHAPES

# Parameters as the publishers count them: a tied head once, Galactica without its (all zero) biases.
PARAMETERS = {
    "gpt2-350m": 354_823_168,
    "galactica-125m": 124_947_456,
    "galactica-1.3b": 1_314_758_656,
    "galactica-6.7b": 6_656_180_224,
    "llama-7b": 6_738_415_616,
    "qwen-7b": 7_721_324_544,
    "decicoder-1b": 1_113_671_680,
    "llama-15m": 15_191_712,
}
CLASSES = {
    "gpt2-350m": ("GPT2Config", "GPT2LMHeadModel"),
    "galactica-125m": ("OPTConfig", "OPTForCausalLM"),
    "llama-7b": ("LlamaConfig", "LlamaForCausalLM"),
    "llama-15m": ("LlamaConfig", "LlamaForCausalLM"),
    "decicoder-1b": ("LlamaConfig", "LlamaForCausalLM"),
}
TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300}


def test_the_shapes_are_these() -> None:
    assert set(SHAPES) == set(PARAMETERS)


@pytest.mark.parametrize("shape", PARAMETERS)
def test_parameters_and_time(shape: str) -> None:
    start = time.perf_counter()
    found = open_checkpoint(f"random:{shape}")
    assert time.perf_counter() - start < 1
    assert sum(info.count for info in found.tensors.values()) == PARAMETERS[shape]
    assert found.origin == f"random:{shape}"
    assert found.folder is None
    assert found.nbytes == PARAMETERS[shape] * (4 if shape == "llama-15m" else 2)


@pytest.mark.parametrize("shape", CLASSES)
def test_names_and_shapes_are_transformers_own(shape: str) -> None:
    """The model on torch's meta device, from our config: every tensor of ours is one of its, and none is missing."""
    import torch

    config_class, model_class = (getattr(transformers, name) for name in CLASSES[shape])
    found = open_checkpoint(f"random:{shape}")
    with torch.device("meta"):
        model = model_class(config_class(**{key: value for key, value in found.config.items() if key != "model_type"}))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert {name: info.shape for name, info in found.tensors.items()} == theirs


def test_names_of_the_first_qwen() -> None:
    tensors = open_checkpoint("random:qwen-7b").tensors
    assert tensors["transformer.wte.weight"].shape == (151936, 4096)
    block = {
        name.split(".", 3)[3]: info.shape for name, info in tensors.items() if name.startswith("transformer.h.31.")
    }
    assert block == {
        "ln_1.weight": (4096,),
        "attn.c_attn.weight": (12288, 4096),
        "attn.c_attn.bias": (12288,),
        "attn.c_proj.weight": (4096, 4096),
        "ln_2.weight": (4096,),
        "mlp.w1.weight": (11008, 4096),
        "mlp.w2.weight": (11008, 4096),
        "mlp.c_proj.weight": (4096, 11008),
    }


def test_values_do_not_depend_on_how_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_checkpoint("random:llama-15m")
    name = "model.embed_tokens.weight"  # 9.2 million values, so several threads
    whole = found.read(name)
    monkeypatch.setenv("ALLOTROPE_THREADS", "7")
    assert np.array_equal(found.read(name), whole)
    monkeypatch.setenv("ALLOTROPE_THREADS", "1")
    assert np.array_equal(open_checkpoint("random:llama-15m").read(name), whole)
    for start, stop in ((0, 1), (31_999, 32_000), (1234, 1234), (3640, 3642), (17, 8000)):
        assert np.array_equal(found.read_rows(name, start, stop), whole[start:stop])
    bias = open_checkpoint("random:gpt2-350m")
    rows = bias.read("transformer.h.3.attn.c_attn.bias")
    for start in (0, 1, 15, 16, 17, 3071):  # the generator's blocks are of 16
        assert np.array_equal(bias.read_rows("transformer.h.3.attn.c_attn.bias", start, 3072), rows[start:])


def test_values_are_the_same_for_ever(tmp_path: Path) -> None:
    """Recorded once. If this fails, evidence that names a random model no longer describes it: raise the scheme."""
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    found = open_checkpoint(f"random:{tmp_path / 'c.json'}")
    values = found.read("model.layers.1.mlp.up_proj.weight")
    assert values.ravel()[:3].tolist() == [-0.20400182902812958, -0.054822660982608795, 0.21558894217014313]
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    assert digest == "1b5a2fb4a38c506bc9c49dd08b5696f71f1dd61c75a1d38566005e6f274c9a0e"
    assert open_checkpoint(f"random:{tmp_path / 'c.json'}").digest() == found.digest()


def test_seeds_and_names_give_other_values(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    ref = f"random:{tmp_path / 'c.json'}"
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    zero, one = open_checkpoint(ref), open_checkpoint(ref, seed=1)
    assert one.origin == f"{ref}@1"
    assert np.array_equal(open_checkpoint(one.origin).read(name), one.read(name))
    assert np.array_equal(open_checkpoint(f"{ref}@0", seed=5).read(name), zero.read(name))
    for a, b in ((zero.read(name), one.read(name)), (zero.read(name), zero.read(other))):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    assert zero.digest() != one.digest()


def test_the_distribution() -> None:
    """Normal, by its moments and quantiles, with neighbours uncorrelated; norms near one; nothing not finite."""
    for shape, name, mean, deviation in (
        ("gpt2-350m", "transformer.h.0.mlp.c_fc.weight", 0, 2**-5),
        ("gpt2-350m", "transformer.h.0.mlp.c_fc.bias", 0, 0.02),
        ("gpt2-350m", "transformer.h.0.ln_1.weight", 1, 0.1),
        ("llama-15m", "model.layers.0.mlp.up_proj.weight", 0, 288**-0.5),
        ("decicoder-1b", "model.layers.0.mlp.up_proj.weight", 0, 2048**-0.5),
        ("llama-7b", "model.layers.0.self_attn.q_proj.weight", 0, 0.02),
    ):
        found = open_checkpoint(f"random:{shape}")
        tag = found.tensors[name].dtype
        raw = found.read_rows(name, 0, min(found.tensors[name].shape[0], 512))
        assert find_nonfinite(raw, tag) == 0
        z = (cast(raw, tag, "fp64").ravel() - mean) / deviation
        slack = 5 / z.size**0.5
        assert abs(z.mean()) < slack + 1e-4
        assert abs(z.std() - 1) < slack + 1e-3
        assert abs((z**4).mean() - 3) < 10 * slack + 2e-3
        for p in (0.01, 0.25, 0.5, 0.9, 0.999):
            assert abs((z < statistics.NormalDist().inv_cdf(p)).mean() - p) < slack + 5e-4
        assert abs((z[1:] * z[:-1]).mean()) < slack
        assert z.max() > 3


def test_speed() -> None:
    """100 million values a second and core are wanted; a tenth of it here, for a machine that is busy."""
    found = open_checkpoint("random:llama-7b")
    found.read("model.layers.0.self_attn.q_proj.weight")
    start = time.process_time()
    for layer in range(2):
        found.read(f"model.layers.{layer}.mlp.up_proj.weight")
    assert time.process_time() - start < 2 * 4096 * 11008 / 10e6


def test_a_config_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"torch_dtype": "bfloat16"}))
    monkeypatch.chdir(tmp_path)
    found = open_checkpoint("random:config.json")
    assert found.origin == f"random:{tmp_path / 'config.json'}"
    assert found.tensors["model.layers.1.self_attn.k_proj.weight"].shape == (32, 64)
    assert found.tensors["lm_head.weight"].dtype == "bf16"
    assert found.config["vocab_size"] == 300
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"dtype": "float16"}))
    assert open_checkpoint("random:config.json").tensors["lm_head.weight"].dtype == "fp16"
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert open_checkpoint("random:config.json").tensors["lm_head.weight"].dtype == "fp32"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("random:llama7b", "unknown shape 'llama7b'; did you mean llama-7b? shapes are gpt2-350m galactica-125m"),
        ("random:galactica-6.7", "did you mean galactica-6.7b?"),
        ("random:QWEN", "did you mean qwen-7b?"),
        ("random:", "unknown shape ''; shapes are gpt2-350m"),
        ("random:" + "x" * 5000, "unknown shape 'xxxx"),
        ("random:nowhere/config.json", "random:nowhere/config.json: no such config.json; shapes are"),
    ],
)
def test_unknown_shapes(ref: str, message: str) -> None:
    with pytest.raises(AllotropeError) as found:
        open_checkpoint(ref)
    assert message in str(found.value)
    assert found.value.exit_code == 2
    assert len(str(found.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'; it must be one of float32 float16 bfloat16"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, outside"),
        ({"architectures": ["MambaForCausalLM"]}, "is not supported"),
    ],
)
def test_a_config_that_lies(change: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(TINY | change))
    with pytest.raises(AllotropeError, match=message):
        open_checkpoint(f"random:{tmp_path / 'c.json'}")


def test_no_torch_is_imported() -> None:
    """`inspect` of a checkpoint, random or not, must not wait for torch."""
    script = "import sys; from allotrope.models.readers.open import open_checkpoint as o; o('random:llama-7b')"
    script += ".read('model.norm.weight'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
