"""Building with narrow weights: the engine computes what its own codes mean, for every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.models.model import open_model
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

WIDER: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1}


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_an_engine_with_narrow_weights_speaks(tmp_path: Path, weights: str) -> None:
    source = tiny("llama", tmp_path / "ckpt", **WIDER)
    built = build(str(source), tmp_path / "engine", weights=weights, **QUICK)
    plan = built.manifest.plan
    narrow = {call.path for call in plan.calls if call.op == "linear_codes"}
    assert {path for path in narrow if path.startswith("blocks.0")} == {
        f"blocks.0.{part}" for part in ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")
    }
    assert [call.path for call in plan.calls if call.op == "linear"] == ["head"]
    engine = open_engine(tmp_path / "engine", check_digests=True)
    assert engine.array("blocks.0.attn.qkv.codes").dtype == np.uint8
    model = open_model(source)
    assert set(model.sources) > {slot for weight in plan.weights.values() for slot, _ in weight.parts} & set(
        model.sources
    )
    with LLM(tmp_path / "engine", threads=1) as llm:
        [answer] = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert len(answer.outputs[0].token_ids) == 4
