"""`verify` of engines into whose weights scales were folded: taken out again, and a wrong one named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.build import build, narrowing
from allotrope.verify.verdict import DEGRADED, IDENTICAL, WITHIN
from tests.narrow_engines import Narrow, asked, folding, moved
from tests.narrow_kit import QUICK, checkpoint
from tests.tiny import rewrite_tensors
from tests.verifying import VOCAB, Forge

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def use(*changes: Any) -> None:
        monkeypatch.setattr(narrowing, "narrow", folding(*changes))

    yield use


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "decicoder", "qwen2", "opt"])
def test_folded_scales_are_taken_out_again(forge: Forge, folds: Any, kind: str, weights: str) -> None:
    folds()
    found = asked(Narrow(forge)(kind, weights=weights, method="nearest"), attribute=True).findings
    assert found.implementation == IDENTICAL, found.located
    assert found.preflight is not None and any("folded" in check.detail for check in found.preflight.checks)
    assert found.cost is not None and found.attribution is not None
    whole = found.cost.figures.mean_kl
    assert found.attribution.whole == pytest.approx(whole, rel=2e-3), "the wide model is the original"
    assert {part.module.rpartition(".")[2] for part in found.attribution.modules} <= {*"qkvo", "gate", "up", "down"}


@pytest.mark.parametrize(
    ("slot", "named"),
    (("blocks.1.attn.norm.weight", "blocks.1.attn.q"), ("blocks.1.attn.o.scales", "blocks.1.attn.o")),
)
def test_a_wrong_fold_is_found_and_named(forge: Forge, folds: Any, slot: str, named: str) -> None:
    folds()
    path = Narrow(forge)("llama", weights="int8")
    result = asked(forge.planted(path, slots={slot: moved}), ("preflight",))
    assert result.findings.preflight is not None and result.findings.verdict == DEGRADED
    assert named in [place.path for place in result.findings.preflight.located]


def test_a_norm_that_was_not_meant_to_be_folded_is_named_itself(narrow: Narrow, forge: Forge) -> None:
    bad = forge.planted(narrow(weights="int8"), slots={"blocks.1.attn.norm.weight": lambda weight: weight * 2})
    found = asked(bad, ("preflight",)).findings
    assert found.located is not None and found.located.path == "blocks.1.attn.norm"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options", ({"weights": "int4", "method": "awq"}, {"weights": "int8", "activations": "int8"}), ids=["awq", "smooth"]
)
def test_calibrated_engines_compute_what_their_weights_say(tmp_path: Path, options: Any, dtype: str) -> None:
    """As the builder folds: into norms, values and the way up, and into layers that stayed wide beside narrow ones."""

    def loud(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            if name.endswith("layernorm.weight"):
                tensor[5] *= 20
        return tensors

    source, out = checkpoint("decicoder", tmp_path / "ckpt"), tmp_path / "engine"
    rewrite_tensors(source, loud)
    (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    kept = ["blocks.1.attn.k=wide", "blocks.2.mlp.down=wide"]
    build(str(source), out, **{**QUICK, "dtype": dtype}, keep=kept, **options)
    found = asked(out).findings
    assert found.implementation == (IDENTICAL if dtype == "fp32" else WITHIN), found.located
    assert found.preflight is not None and any("folded" in check.detail for check in found.preflight.checks)
