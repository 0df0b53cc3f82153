"""Every family means what transformers means: its lowered plan, run by the ops' references in fp64, gives its logits.

This judges recipe, mapping and lowering end to end, apart from any tactic or executor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from allotrope.models import family
from allotrope.models.model import Model, open_model
from tests.tiny import FAMILIES, KINDS, oracle, tiny
from tests.walk import Walk

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 17, 40)  # of prompts that are computed side by side
MORE = 3  # tokens that follow, one at a time, through the cache


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    """The greatest difference is within `relative` of the greatest value; transformers' norms are fp32."""
    assert ours.shape == theirs.shape
    error = (ours.double() - theirs.double()).abs().max() / theirs.abs().max()
    assert error <= relative, float(error)


def sequences(model: Model) -> list[list[int]]:
    """Ragged random prompts with what follows them."""
    random = np.random.default_rng(5)
    return [random.integers(0, model.recipe.vocab, length + MORE).tolist() for length in LENGTHS]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama-dynamic"])
def test_logits_are_the_oracles(kind: str, tmp_path: Path) -> None:
    model = open_model(tiny(kind, tmp_path))
    theirs, tokens = oracle(tmp_path, torch.float64), sequences(model)
    walk = Walk(model, len(tokens), 64)
    parts = [walk.run([mine[:length] for mine, length in zip(tokens, LENGTHS, strict=True)])]
    for extra in range(MORE):
        parts.append(walk.run([[mine[length + extra]] for mine, length in zip(tokens, LENGTHS, strict=True)]))
    for r, mine in enumerate(tokens):
        with torch.no_grad():
            close(torch.cat([part[r] for part in parts]), theirs(torch.tensor([mine])).logits[0])


@pytest.mark.parametrize("length", [10, 24, 25, 60])
def test_dynamic_rope_follows_the_length_as_transformers_with_its_cache(length: int, tmp_path: Path) -> None:
    model = open_model(tiny("llama-dynamic", tmp_path))
    assert model.recipe.max_len == 72
    tokens = np.random.default_rng(length).integers(0, 131, length + MORE).tolist()
    theirs, walk = oracle(tmp_path, torch.float64), Walk(model, 1, 72)
    with torch.no_grad():
        given = theirs(torch.tensor([tokens[:length]]), use_cache=True)
        close(walk.run([tokens[:length]])[0], given.logits[0])
        for i in range(length, length + MORE):
            given = theirs(torch.tensor([tokens[i : i + 1]]), past_key_values=given.past_key_values, use_cache=True)
            close(walk.run([[tokens[i]]])[0], given.logits[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_block_is_the_oracles(kind: str, tmp_path: Path) -> None:
    """The place that a family names for a block is where the oracle computes it."""
    model = open_model(tiny(kind, tmp_path))
    theirs, tokens = oracle(tmp_path, torch.float64), list(range(3, 23))
    seen: dict[str, torch.Tensor] = {}
    recipe, modules = model.recipe, dict(theirs.named_modules())
    paths = [call.path for call in Walk(model, 1, 32).plan.calls if call.op == "linear"]
    for path in [f"blocks.{i}" for i in range(len(recipe.blocks))] + paths:
        site = model.family.site(path, recipe)
        assert site is not None, path

        def keep(_module: object, _ins: object, out: object, path: str = path, columns: object = site.columns) -> None:
            whole = out[0] if isinstance(out, tuple) else out
            assert isinstance(whole, torch.Tensor)
            whole = whole.reshape(-1, whole.shape[-1])
            seen[path] = whole if columns is None else whole[:, slice(*columns)]  # type: ignore[misc]

        modules[site.module].register_forward_hook(keep)
    with torch.no_grad():
        theirs(torch.tensor([tokens]))
    walk = Walk(model, 1, 32)
    walk.run([tokens])
    for i, hidden in enumerate(walk.hidden):
        close(hidden, seen[f"blocks.{i}"])
    last = len(recipe.blocks) - 1  # buffers are shared by the blocks, so the last one's are what is left
    for part, buffer in (
        ("attn.q", "q"),
        ("attn.v", "v"),
        ("attn.o", "attn_out"),
        ("mlp.up", "up"),
        ("mlp.down", "mlp_out"),
    ):
        close(walk.buffers[buffer], seen[f"blocks.{last}.{part}"])
    assert model.family.site("blocks.0.attn.attention", recipe) is None


def test_a_window_counts_the_query_itself(tmp_path: Path) -> None:
    """Token 0 is out of sight at position `window`, and in sight one before: in transformers and here."""
    folder = tiny("mistral", tmp_path, num_hidden_layers=1)
    model, theirs = open_model(folder), oracle(folder, torch.float64)
    window = model.recipe.blocks[0].attention.window
    assert window == 9
    tokens = list(range(20, 20 + 12))
    for logits in (
        lambda ids: Walk(model, 1, 16).run([ids])[0],
        lambda ids: theirs(torch.tensor([ids])).logits[0].detach(),
    ):
        changed = (logits(tokens) - logits([7, *tokens[1:]])).abs().amax(-1) > 1e-9
        assert changed.tolist() == [True] * window + [False] * (len(tokens) - window)


def test_stored_zero_biases_change_nothing(tmp_path: Path) -> None:
    first, second = (open_model(tiny(kind, tmp_path / kind)) for kind in ("galactica", "galactica-zero"))
    tokens = list(range(30))
    assert torch.equal(Walk(first).run([tokens])[0], Walk(second).run([tokens])[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen", "galactica"])
def test_16_bit_weights_keep_every_bit(kind: str, dtype: str, tmp_path: Path) -> None:
    model = open_model(tiny(kind, tmp_path, dtype=dtype))
    tokens = list(range(12))
    with torch.no_grad():
        close(Walk(model).run([tokens])[0], oracle(tmp_path, torch.float64)(torch.tensor([tokens])).logits[0])


# --- the first Qwen beyond its training length, against the publisher's own code


@pytest.fixture(scope="module")
def qwen_long(assets: Path) -> tuple[Model, dict[str, np.ndarray]]:
    with np.load(assets / "qwen-long" / "vectors.npz") as vectors:
        return open_model(assets / "qwen-long"), dict(vectors)


@pytest.mark.parametrize("length", [48, 96, 192])
def test_first_qwen_past_its_training_length(length: int, qwen_long: tuple[Model, dict[str, np.ndarray]]) -> None:
    model, vectors = qwen_long
    walk, expected = Walk(model, 1, 240), {k: torch.from_numpy(v) for k, v in vectors.items()}
    logits = walk.run([expected[f"p{length}_ids"].tolist()])[0]
    torch.testing.assert_close(logits.float(), expected[f"p{length}_logits"], rtol=0, atol=1e-4)
    for block, hidden in zip(expected[f"p{length}_blocks"], walk.hidden, strict=True):
        torch.testing.assert_close(hidden.float(), block, rtol=0, atol=1e-4)
    greedy = []
    for step in range(40):
        greedy.append(int(logits[-1].argmax()))
        logits = walk.run([[greedy[-1]]])[0]
        torch.testing.assert_close(logits[-1].float(), expected[f"p{length}_decode_logits"][step], rtol=0, atol=1e-4)
    assert greedy == expected[f"p{length}_tokens"].tolist()


def test_first_qwen_at_the_edges_of_its_steps(qwen_long: tuple[Model, dict[str, np.ndarray]]) -> None:
    model, vectors = qwen_long
    for i, length in enumerate(vectors["edge_lengths"].tolist()):
        walk = Walk(model, 1, 264)
        logits = walk.run([vectors["edge_ids"][i][:length].tolist()])[0][-1]
        np.testing.assert_allclose(logits.numpy(), vectors["edge_last_logits"][i], rtol=0, atol=1e-4)
        for k in range(2):
            assert int(logits.argmax()) == vectors["edge_tokens"][i][k], length
            logits = walk.run([[int(logits.argmax())]])[0][-1]
            np.testing.assert_allclose(logits.numpy(), vectors["edge_decode_logits"][i][k], rtol=0, atol=1e-4)


def test_first_qwen_within_its_training_length_is_its_oracle(
    qwen_long: tuple[Model, dict[str, np.ndarray]], assets: Path
) -> None:
    model, vectors = qwen_long
    assert model.family.oracle.max_len(model.config) == 64
    tokens = vectors["p48_ids"].tolist()
    with torch.no_grad():
        theirs = oracle(assets / "qwen-long", torch.float64)(torch.tensor([tokens])).logits[0]
    close(Walk(model).run([tokens])[0], theirs)


# --- a trained model, against an independent float64 forward


@pytest.fixture(scope="module")
def stories(assets: Path) -> tuple[Model, dict[str, Any]]:
    folder = assets / "stories260K"
    return open_model(folder), json.loads((folder / "derived_reference_float64.json").read_text())


def test_stories260k_writes_its_story(stories: tuple[Model, dict[str, Any]]) -> None:
    model, recorded = stories
    walk, ids, margins = Walk(model, 1, 512), recorded["greedy_ids"], []
    logits = walk.run([ids[:1]])[0][-1]
    torch.testing.assert_close(logits, torch.tensor(recorded["logits_after_BOS"]).double(), rtol=0, atol=1e-4)
    for token in ids[1:]:
        best = logits.topk(2)
        assert best.indices[0] == token
        margins.append(float(best.values[0] - best.values[1]))
        logits = walk.run([[token]])[0][-1]
    np.testing.assert_allclose(margins, recorded["greedy_margins_top1_minus_top2"][: len(margins)], atol=1e-4)


def test_stories260k_likelihood(stories: tuple[Model, dict[str, Any]], assets: Path) -> None:
    model, recorded = stories
    prompt = Walk(model).run([recorded["prompt_ids"]])[0][-1]
    torch.testing.assert_close(prompt, torch.tensor(recorded["logits_last_pos_prompt"]).double(), rtol=0, atol=1e-4)
    tokenizer = tokenizers.Tokenizer.from_file(str(assets / "stories260K" / "tokenizer.json"))
    text = (assets / "text" / "tinystories.txt").read_text()
    total, count = 0.0, 0
    for story in text.split("<|endoftext|>")[:60]:
        ids = [1, *tokenizer.encode(story.strip(), add_special_tokens=False).ids][:512]
        logits = Walk(model, 1, 512, torch.float32).run([ids])[0].double().log_softmax(-1)
        total -= float(logits[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert count == recorded["nll_tokens"]
    assert total / count == pytest.approx(recorded["nll_per_token_first60_stories_max512"], abs=1e-4)


def test_adding_a_family_is_adding_a_file() -> None:
    files = {path.stem for path in Path(family.families.__path__[0]).glob("*.py")} - {"__init__"}
    assert {found.name for found in family.all_families()} == files == set(FAMILIES)
    named = [name for found in family.all_families() for name in found.architectures]
    assert len(named) == len(set(named)), "two families claim one architecture"
