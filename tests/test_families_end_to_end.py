"""Every kind of tiny model, from checkpoint to text, against transformers on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
from allotrope.verify.verdict import IDENTICAL
from tests.tiny import KINDS
from tests.tiny import oracle as plain_original
from tests.verifying import CPU, VOCAB, Forge, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 64
LIMIT = 2 * STEPS


def longer(kind: str) -> dict[str, Any]:
    """The settings under which a kind's sequences may be `LIMIT` long; a scaling keeps its own reach."""
    settings = KINDS[kind][1]
    if kind == "llama-dynamic":
        reach = settings["max_position_embeddings"]
        return {"rope_parameters": {**settings["rope_parameters"], "factor": LIMIT / reach}}
    return {"n_positions" if "n_positions" in settings else "max_position_embeddings": LIMIT}


def ragged(limit: int) -> list[list[int]]:
    """From one token to all that leave room for the text, and one that leaves none."""
    random = np.random.default_rng(5)
    return [random.integers(0, VOCAB, n).tolist() for n in (1, 2, 17, limit - STEPS, limit)]


def continued(original: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy text by transformers' own loop and cache."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = original.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_is_the_original(forge: Forge, kind: str) -> None:
    source = checkpoint(kind, forge.new(kind), **longer(kind))
    path = forge.new(f"{kind}-engine")
    build(str(source), path, device="cpu", dtype="fp32", tune="off")
    engine, prompts = open_engine(path, device=CPU), ragged(LIMIT)
    counts = [STEPS, STEPS, STEPS, STEPS, 1]
    # Anew for each prompt: with dynamic scaling transformers' rotary table stays as the longest so far left it.
    expected = [continued(plain_original(source), *asked) for asked in zip(prompts, counts, strict=True)]

    driver = Driver(engine, CPU, sequences=len(prompts), longest=LIMIT, tokens=LIMIT)
    assert driver.greedy(prompts, counts, chunk=40) == expected, "poisoned pool, chunked prefill"
    with LLM(path, threads=1, page_size=8, max_num_seqs=3, max_batched_tokens=50) as llm:
        params = [SamplingParams(max_tokens=count, temperature=0, ignore_eos=True) for count in counts[:4]]
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts[:4]], params)
    assert [list(answer.outputs[0].token_ids) for answer in answers] == expected[:4]

    result = verify(path, Question(locate=True, new_tokens=8))
    assert result.findings.verdict == IDENTICAL
    assert max(len(prompt.ids) for prompt in result.prompts) == LIMIT
    assert min(len(prompt.ids) for prompt in result.prompts) == 1


@pytest.fixture(scope="module")
def qwen_long(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Driver, Any]]:
    """The publisher's own outputs beyond the training length, and an engine of the same weights."""
    from tests.verifying import with_bytes

    folder = tmp_path_factory.mktemp("qwen-long")
    source = with_bytes(assets / "qwen-long", folder / "checkpoint", 512)
    build(str(source), folder / "engine", device="cpu", dtype="fp32", tune="off")
    engine = open_engine(folder / "engine", device=CPU)
    yield Driver(engine, CPU, sequences=14, longest=260, tokens=1700), np.load(assets / "qwen-long" / "vectors.npz")


NEAR = 1e-4  # what the assets' own notes ask for; a wrong formula is thirty times off or more


def far(found: torch.Tensor, expected: np.ndarray[Any, Any]) -> float:
    return check.compare(found, torch.from_numpy(expected)).max_abs


@pytest.mark.parametrize("length", (48, 96, 192))
def test_qwen_prompts_beyond_the_training_length(qwen_long: tuple[Driver, Any], length: int) -> None:
    driver, vectors = qwen_long
    blocks: dict[str, torch.Tensor] = {}

    def visit(call: Any, outs: Any, index: torch.Tensor) -> None:
        if call.path.endswith("mlp.add"):
            kept = blocks.setdefault(call.path, torch.full((length, 64), torch.nan))
            kept[index] = outs["out"]

    logits = driver.walk([vectors[f"p{length}_ids"].tolist()], visit)
    assert far(logits, vectors[f"p{length}_logits"]) < NEAR
    for i, found in enumerate(blocks.values()):
        assert far(found, vectors[f"p{length}_blocks"][i]) < NEAR
    assert len(blocks) == 3


@pytest.mark.parametrize("chunk", (1000, 29, 1), ids=("whole", "chunked", "one by one"))
def test_qwen_decodes_beyond_the_training_length(qwen_long: tuple[Driver, Any], chunk: int) -> None:
    """All three prompts in one batch, each with the rotary base of its own length."""
    driver, vectors = qwen_long
    lengths = (48, 96, 192)
    heard: list[list[torch.Tensor]] = [[], [], []]
    texts = driver.greedy(
        [vectors[f"p{length}_ids"].tolist() for length in lengths],
        [41, 41, 41],
        chunk=chunk,
        heard=lambda row, logits: heard[row].append(logits.clone()),
    )
    for row, length in enumerate(lengths):
        assert texts[row][:40] == vectors[f"p{length}_tokens"].tolist()
        assert far(torch.stack(heard[row][1:]), vectors[f"p{length}_decode_logits"]) < NEAR


def test_qwen_at_every_edge_of_the_training_length(qwen_long: tuple[Driver, Any]) -> None:
    driver, vectors = qwen_long
    prompts = [ids[ids >= 0].tolist() for ids in vectors["edge_ids"]]
    assert [len(prompt) for prompt in prompts] == vectors["edge_lengths"].tolist()
    heard: list[list[torch.Tensor]] = [[] for _ in prompts]
    texts = driver.greedy(prompts, [3] * 14, heard=lambda row, logits: heard[row].append(logits.clone()))
    for row in range(len(prompts)):
        assert texts[row][:2] == vectors["edge_tokens"][row].tolist()
        assert far(heard[row][0], vectors["edge_last_logits"][row]) < NEAR
        assert far(torch.stack(heard[row][1:]), vectors["edge_decode_logits"][row]) < NEAR


def test_qwen_is_verified_up_to_the_training_length_and_says_so(assets: Path, qwen_long: Any, tmp_path: Path) -> None:
    from tests.verifying import with_bytes

    build(str(with_bytes(assets / "qwen-long", tmp_path / "c", 512)), tmp_path / "e", device="cpu", tune="off")
    result = verify(tmp_path / "e", Question(locate=True))
    assert result.findings.verdict == IDENTICAL
    assert max(len(prompt.ids) + prompt.new for prompt in result.prompts) == 64
    assert result.findings.preflight is not None
    [length] = [check for check in result.findings.preflight.checks if check.name == "length"]
    assert length.ok is None and "up to 64 tokens" in length.detail


def test_the_oracle_is_the_same_held_whole_or_block_by_block(forge: Forge) -> None:
    for kind in ("gpt2", "opt-350m", "qwen", "qwen3"):
        model = open_model(checkpoint(kind, forge.new(kind)))
        prompts = [[3, 1, 4, 1, 5], [9, 2]]
        whole, lean = (oracle(model, "fp64", CPU, resident=resident) for resident in (True, False))
        assert torch.equal(whole.walk(prompts, {})["logits"], lean.walk(prompts, {})["logits"])
        assert all(parameter.is_meta for parameter in lean.model.parameters())
