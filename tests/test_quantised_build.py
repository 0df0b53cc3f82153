"""Engines built from checkpoints in codes: no code is rounded again, and they say what the wide weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Call, name
from allotrope.build import build
from allotrope.errors import AllotropeError
from allotrope.models.model import open_model
from allotrope.models.quantised.stored import Stored
from allotrope.ops.codes import decoded
from tests.quantised_folder import CT, quantised
from tests.test_quantised_models import CASES, STORED

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1}
PROMPTS = [[3, 17, 99, 5, 41], [7], [12, 13, 14, 15, 16, 17, 18]]


def tokens(engine: Path) -> list[tuple[int, ...]]:
    with LLM(engine, threads=1) as llm:
        answers = llm.generate(PROMPTS, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    return [tuple(answer.outputs[0].token_ids) for answer in answers]


def meant(engine: Engine, call: Call) -> torch.Tensor:
    """The matrix that a call's stored bytes stand for, columns where the checkpoint has them."""
    held = {part: torch.from_numpy(engine.array(name(slot)).copy()) for part, slot in call.ins.items() if "w:" in slot}
    matrix = decoded(held["codes"], held["scales"], held.get("zeros"), str(call.params["format"]), torch.float32)
    [orders] = [
        [other for other in engine.manifest.plan.calls if other.op == "reorder" and other.outs["out"] == call.ins["x"]]
    ]
    block = ".".join(call.path.split(".")[:2]) + "."
    for order in orders:
        if order.path.startswith(block):
            places = torch.from_numpy(engine.array(name(order.ins["order"])).copy()).long()
            matrix = matrix[:, places.argsort()]
    return matrix


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_an_engine_holds_the_checkpoints_own_numbers(kind: str, case: str, tmp_path: Path) -> None:
    """Every narrow weight of the engine means the checkpoint's bit for bit, and the tokens are the wide weights'."""
    folder = quantised(kind, tmp_path / "ckpt", STORED[case])
    built = build(str(folder), tmp_path / "engine", **QUICK)
    engine, wide = open_engine(tmp_path / "engine", check_digests=True), open_model(folder / "wide")
    calls = [call for call in built.manifest.plan.calls if call.op == "linear_codes"]
    parts = 0
    for call in calls:
        spec = engine.manifest.plan.weights[name(call.ins["codes"])]
        slots = [slot.removesuffix(".codes") + ".weight" for slot, _ in spec.parts]
        np.testing.assert_array_equal(meant(engine, call).numpy(), np.concatenate([wide.read(s)[0] for s in slots]))
        parts += len(slots)
    assert parts == len(open_model(folder).quantised)
    facts = built.manifest.evidence["quantisation"]
    assert facts["method"] == "as stored" and facts["total"]["noise"] == 0
    build(str(folder / "wide"), tmp_path / "plain", **QUICK)
    assert tokens(tmp_path / "engine") == tokens(tmp_path / "plain")
