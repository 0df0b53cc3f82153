"""Keys less their mean: where that is harmless, what it buys, that `verify` accounts for it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import settings
from allotrope.artifact.engine import Engine, open_engine
from allotrope.build import build
from allotrope.errors import UsageError
from allotrope.hw.detect import detect
from allotrope.models.lower import lower
from allotrope.models.model import open_model
from allotrope.quant.cache import with_cache
from allotrope.quant.centre import keys, worded
from allotrope.quant.policy import Wanted, policy
from allotrope.verify.drive import Driver
from allotrope.verify.verdict import DEGRADED, IDENTICAL, WITHIN
from tests.narrow_engines import asked
from tests.narrow_kit import QUICK, checkpoint
from tests.tiny import rewrite_tensors, tiny
from tests.verifying import VOCAB, Forge

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.randint(3, VOCAB, (4, 48), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    with settings.keeping_in(tmp_path / "cache"):
        yield


def far(kind: str, folder: Path) -> Path:
    """A model whose keys are the sum of a large vector, the same for all, and what differs from token to token."""

    def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(3)
        for name, tensor in tensors.items():
            if name.endswith("k_proj.bias"):
                tensor.add_(12 * torch.randn(tensor.shape, generator=random))
            elif name.endswith("c_attn.bias"):
                third = len(tensor) // 3
                tensor[third : 2 * third] += 12 * torch.randn(third, generator=random)
            elif kind == "galactica" and name.endswith("self_attn_layer_norm.bias"):
                tensor.add_(6 * torch.randn(tensor.shape, generator=random))
        return tensors

    source = checkpoint(kind, folder)
    rewrite_tensors(source, moved)
    (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    return source


def logits(path: Path) -> torch.Tensor:
    driver = Driver(open_engine(path), detect("cpu"), sequences=4, longest=48, tokens=192)
    return driver.walk(IDS).double()


def slot(engine: Engine, wanted: str) -> Any:
    """A bias as it is stored."""
    for held, weight in engine.manifest.plan.weights.items():
        start = 0
        for name, shape in weight.parts:
            if name == wanted:
                return engine.array(held)[start : start + shape[0]]
            start += shape[0]
    return None


def test_where_keys_go_into_the_cache_as_they_are(tmp_path: Path) -> None:
    found = {}
    for kind in ("gpt2", "opt", "opt-350m", "galactica", "llama", "qwen3", "mistral"):
        plan = with_cache(lower(open_model(tiny(kind, tmp_path / kind)).recipe), "int8")
        source = keys(plan, 1)
        found[kind] = source if isinstance(source, str) else source.path
        said = worded(policy(plan, Wanted(kv="int8")), plan, None).words("blocks.1.attn.kv")
        told = "less their mean" if not isinstance(source, str) else "with their mean: rotary turns them"
        assert said == f"int8 per token and head, keys {told}"
    plain = dict.fromkeys(("gpt2", "opt", "opt-350m", "galactica"), "blocks.1.attn.k")
    assert found == plain | dict.fromkeys(("llama", "qwen3", "mistral"), "rotary turns them")


@pytest.mark.parametrize("kind", ["gpt2", "opt", "galactica"])
def test_keys_less_their_mean_are_rounded_in_finer_steps(tmp_path: Path, kind: str) -> None:
    source, errors = str(far(kind, tmp_path / "ckpt")), {}
    build(source, tmp_path / "wide", **QUICK)
    exact = logits(tmp_path / "wide")
    for name, options in (("centred", {}), ("plain", {"without": "centre"})):
        built = build(source, tmp_path / name, kv="int8", **options, **QUICK)
        errors[name] = float((logits(tmp_path / name) - exact).norm() / exact.norm())
        assert ("centred" in built.manifest.evidence["kv"]) == (name == "centred")
    assert errors["centred"] < 0.6 * errors["plain"], errors
    plan = open_engine(tmp_path / "centred").manifest.plan
    assert "qkv" in plan.fusions, "biases on k alone would part q, k and v"


@pytest.mark.parametrize(
    ("kind", "options"),
    (
        ("galactica", {"kv": "int8"}),
        ("gpt2", {"kv": "fp8", "dtype": "bf16"}),
        ("opt", {"kv": "int8", "keep": ["blocks.1.attn.kv=wide"]}),
        ("galactica", {"kv": "int8", "weights": "int8", "activations": "int8", "calibration_tokens": 512}),
    ),
)
def test_verify_accounts_for_what_was_taken_off(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    build(str(far(kind, tmp_path / "ckpt")), tmp_path / "engine", **{**QUICK, **options})
    found = asked(tmp_path / "engine", attribute=True).findings
    assert found.implementation == (WITHIN if "dtype" in options else IDENTICAL), found.located
    assert found.preflight is not None and found.cost is not None and found.attribution is not None
    count = 2 if "keep" in options else 3
    assert any(f"taken off the keys of {count} blocks" in check.detail for check in found.preflight.checks)
    if "dtype" not in options:
        assert found.attribution.whole == pytest.approx(found.cost.figures.mean_kl, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "options", "change", "named", "words"),
    (
        ("opt", {"kv": "int8"}, "blocks.1.attn.k.bias", "blocks.1.attn.k", "the build says"),
        ("galactica", {"kv": "int8"}, "blocks.1.attn.q.bias", "blocks.1.attn.q", "is no weight of the original"),
        ("opt", {"kv": "int8", "without": "centre"}, "blocks.1.attn.k.bias", "blocks.1.attn.k", "differs from the"),
        ("opt", {}, "blocks.1.attn.k.bias", "blocks.1.attn.k", "differs from the"),
    ),
)
def test_what_no_build_took_off_is_named(
    forge: Forge, kind: str, options: dict[str, Any], change: str, named: str, words: str
) -> None:
    out = forge.new(f"{kind}-centre")
    build(str(far(kind, forge.new(f"{kind}-far"))), out, **QUICK, **options)
    found = asked(forge.planted(out, slots={change: lambda bias: bias + np.float32(0.5)}), ("preflight",)).findings
    assert found.verdict == DEGRADED and found.located is not None
    assert found.located.path == named and words in found.located.detail


def test_a_mean_is_found_on_the_text_that_is_given(tmp_path: Path) -> None:
    source = str(far("opt", tmp_path / "ckpt"))
    (tmp_path / "text").write_text("abcdefgh" * 400)
    taken = {}
    for name, options in (("bundled", {}), ("given", {"calibration": str(tmp_path / "text")})):
        built = build(source, tmp_path / name, kv="int8", **options, **QUICK)
        taken[name] = slot(open_engine(tmp_path / name), "blocks.1.attn.k.bias")
        assert built.manifest.evidence["kv"]["calibration"]["text"] == options.get("calibration", "bundled")
    assert not np.array_equal(taken["bundled"], taken["given"])
    with pytest.raises(UsageError, match="there is a calibration text, but nothing to be calibrated"):
        build(source, tmp_path / "no", kv="int8", without="centre", calibration=str(tmp_path / "text"), **QUICK)


def test_without_a_tokenizer_keys_stay_as_they_are(tmp_path: Path) -> None:
    said = list[str]()
    from allotrope.build.builder import build as builder
    from allotrope.build.options import BuildOptions

    source = checkpoint("opt", tmp_path / "ckpt")
    built = builder(str(source), tmp_path / "engine", BuildOptions.of(kv="int8", **QUICK), said=said.append)
    assert any("keys with their mean: without a tokenizer there is no text" in line for line in said)
    assert "centred" not in built.manifest.evidence["kv"]
