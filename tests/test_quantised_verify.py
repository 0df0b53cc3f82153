"""Engines of checkpoints in codes against the original, which are the codes themselves: right, and at no cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from allotrope.build import build
from allotrope.verify.session import Question, verify
from tests.quantised_folder import quantised
from tests.test_quantised_models import STORED
from tests.tiny import rewrite_tensors

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1}
CASES = [("qwen", "gptq"), ("llama", "gptq-order"), ("gpt2", "awq"), ("llama", "int8-acts"), ("gpt2", "fp8-tensor")]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_codes_that_are_kept_cost_nothing(kind: str, case: str, tmp_path: Path) -> None:
    folder = quantised(kind, tmp_path / "ckpt", STORED[case])
    build(str(folder), tmp_path / "engine", **QUICK)
    found = verify(tmp_path / "engine", Question(device="cpu", threads=1)).findings.to_json()
    assert found["implementation"] in ("identical", "within rounding"), found
    if STORED[case].activations is None:
        assert found["cost"]["word"] == "within rounding", found["cost"]


def test_codes_may_count_downwards(tmp_path: Path) -> None:
    """Some tools give a group whose largest weight is negative a negative scale, which uses one code more."""
    folder, name = quantised("llama", tmp_path / "ckpt", STORED["gptq"]), "model.layers.1.mlp.down_proj.scales"
    rewrite_tensors(folder, lambda old: {**old, name: -old[name]})
    build(str(folder), tmp_path / "engine", **QUICK)
    found = verify(tmp_path / "engine", Question(device="cpu", threads=1)).findings.to_json()
    assert found["implementation"] == "identical" and found["cost"]["word"] == "within rounding", found
