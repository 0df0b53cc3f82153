"""`allotrope eval` as a user calls it, and a model in transformers by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from allotrope.cli import main
from allotrope.hw.detect import detect
from allotrope.models.model import open_model
from allotrope.verify.original import oracle

MODELS = Path(__file__).parents[1] / "models"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """The exit code, what `--json` printed, and what went to stderr."""
    code = main(["eval", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if captured.out else {}, captured.err


def network(path: Path) -> Any:
    """The model in transformers; where that has no class under its own name, through the oracle's mapping."""
    if path.name == "tinychat":
        return oracle(open_model(path), "fp32", detect("cpu")).model
    kind = transformers.LlamaForCausalLM if path.name == "pycoder" else transformers.AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32).eval()


def by_hand(model: Any, ids: list[int], size: int, stride: int) -> tuple[int, float]:
    """As transformers' guide to perplexity has it: labels before a window's news are masked, then shifted."""
    told, total, count = 0, 0.0, 0
    for start in range(0, len(ids), stride):
        end = min(start + size, len(ids))
        given = torch.tensor([ids[start:end]])
        labels = given.clone()
        labels[:, : given.shape[1] - (end - told)] = -100
        with torch.no_grad():
            logits = model(input_ids=given).logits[0, :-1].double()
        wanted = labels[0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
        count += int((wanted >= 0).sum())
        told = end
        if end == len(ids):
            break
    return count, total / count
