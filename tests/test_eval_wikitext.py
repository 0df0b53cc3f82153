"""The likelihood of WikiText-2's test text by `allotrope eval`, and by transformers alone, as its guide has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from allotrope import tokenizers
from allotrope.build import build
from allotrope.models.model import open_model
from tests.eval_kit import MODELS, by_hand, call, network

NAMES = ("docsum", "pycoder", "tinychat", "tinygal", "tinygal-draft", "tinygpt2", "stories260K")
TOKENS, WINDOW = 8192, 2048
WITHOUT = "tinychat"  # a tokenizer that transformers reads by itself


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_wikitext_is_as_likely_as_to_transformers(
    name: str, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = assets / name if name == "stories260K" else MODELS / name
    build(str(source), tmp_path / "engine", device="cpu", tune="off")
    text = assets / "text" / "wiki.test.raw"
    code, found, _ = call(capsys, tmp_path / "engine", "--text", text, "--tokens", TOKENS)
    assert code == 0
    vocab = open_model(source).recipe.vocab
    part = text.read_text(encoding="utf-8")[: 6 * TOKENS]  # more than is needed
    if name == WITHOUT:
        ids = tokenizers.load(source, vocab).encode(part)
    else:
        ids = transformers.AutoTokenizer.from_pretrained(source)(part)["input_ids"]
    window = found["text"]["window"]
    assert len(ids) >= TOKENS and window <= WINDOW and found["text"]["stride"] == window // 2
    count, mean = by_hand(network(source), ids[:TOKENS], window, window // 2)
    assert found["text"]["scored"] == count == TOKENS - 1
    assert found["nll_per_token"] == pytest.approx(mean, abs=1e-5)
    assert found["original_nll_per_token"] == pytest.approx(mean, abs=1e-5)
