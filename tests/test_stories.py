"""stories260K, a real trained model: the text that llama2.c's own tests demand, ids, margins and likelihood."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.build import build
from allotrope.models.model import open_model
from allotrope.ops import check
from allotrope.verify.drive import Driver
from allotrope.verify.original import oracle
from allotrope.verify.session import Question, verify
from allotrope.verify.verdict import IDENTICAL, WITHIN
from tests.verifying import CPU

pytestmark = pytest.mark.usefixtures("one_thread")

STORIES, LONGEST = 60, 512  # as the recorded likelihood was computed


@pytest.fixture(scope="module")
def source(assets: Path) -> Path:
    return assets / "stories260K"


@pytest.fixture(scope="module")
def recorded(source: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((source / "derived_reference_float64.json").read_text())
    return found


@pytest.fixture(scope="module")
def engines(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stories")
    for dtype in ("fp32", "bf16"):
        build(str(source), folder / dtype, device="cpu", dtype=dtype, tune="off")
    return {dtype: folder / dtype for dtype in ("fp32", "bf16")}


def test_the_expected_characters_and_ids(engines: dict[str, Path], source: Path, recorded: dict[str, Any]) -> None:
    expected = json.loads((source / "expected.json").read_text())["llama2c_greedy"]["expected_text"]
    with LLM(engines["fp32"], threads=1) as llm:
        [answer] = llm.generate([""], SamplingParams(max_tokens=200, temperature=0, ignore_eos=True))
    assert len(expected) == 464
    assert answer.outputs[0].text.strip() == expected.strip()
    assert [*answer.prompt_token_ids, *answer.outputs[0].token_ids] == recorded["greedy_ids"]


def test_logits_and_likelihood(engines: dict[str, Path], assets: Path, recorded: dict[str, Any]) -> None:
    from allotrope import tokenizers

    tokenizer = tokenizers.load(engines["fp32"] / "tokenizer")
    text = (assets / "text" / "tinystories.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>")]
    ids = [tokenizer.encode(story)[:LONGEST] for story in stories if story][:STORIES]
    assert sum(len(story) - 1 for story in ids) == recorded["nll_tokens"]
    driver = Driver(open_engine(engines["fp32"], device=CPU), CPU, sequences=10, longest=LONGEST, tokens=10 * LONGEST)
    total = 0.0
    for start in range(0, STORIES, 10):
        batch = ids[start : start + 10]
        logits = driver.walk(batch).split([len(story) for story in batch])
        for story, rows in zip(batch, logits, strict=True):
            total += float(torch.nn.functional.cross_entropy(rows[:-1], torch.tensor(story[1:]), reduction="sum"))
    assert math.isclose(total / recorded["nll_tokens"], recorded["nll_per_token_first60_stories_max512"], abs_tol=1e-4)
    after = driver.walk([recorded["prompt_ids"], [1]])
    for row, key in ((12, "logits_last_pos_prompt"), (13, "logits_after_BOS")):
        assert check.compare(after[row], torch.tensor(recorded[key], dtype=torch.float64)).max_abs < 1e-4


def test_bf16_diverges_only_within_the_noise(engines: dict[str, Path], source: Path, recorded: dict[str, Any]) -> None:
    """Where the text first differs, the recorded margin must be what the original's own bf16 noise covers."""
    ids, margins = recorded["greedy_ids"], recorded["greedy_margins_top1_minus_top2"]
    driver = Driver(open_engine(engines["bf16"], device=CPU), CPU, sequences=1, longest=201, tokens=201)
    [text] = driver.greedy([ids[:1]], [200])
    place = next((i for i, (mine, theirs) in enumerate(zip(text, ids[1:], strict=True)) if mine != theirs), None)
    if place is None:
        return
    model = open_model(source)
    truth, noisy = (oracle(model, dtype, CPU).walk([ids[: place + 1]], {})["logits"][-1] for dtype in ("fp64", "bf16"))
    two = truth.topk(2)
    assert math.isclose(float(two.values[0] - two.values[1]), margins[place], abs_tol=1e-9)
    assert text[place] == int(two.indices[1])
    assert margins[place] <= 2 * check.compare(noisy, truth).max_abs
    assert place > 10, "bf16 is not that bad"


@pytest.mark.parametrize(("dtype", "word"), (("fp32", IDENTICAL), ("bf16", WITHIN)))
def test_the_verdict(engines: dict[str, Path], dtype: str, word: str) -> None:
    result = verify(engines[dtype], Question(locate=True))
    assert result.findings.verdict == word and result.findings.located is None
    assert result.findings.preflight is not None
    [ids] = [check for check in result.findings.preflight.checks if check.name == "token ids"]
    assert ids.ok is True
