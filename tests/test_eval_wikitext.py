"""The likelihood of WikiText-2's test text by `allotrope eval`, and by transformers alone, as its guide has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import transformers

from allotrope import tokenizers
from allotrope.build import build
from allotrope.models.model import open_model
from tests.eval_kit import MODELS, by_hand, call, network

NAMES = ("docsum", "pycoder", "tinychat", "tinygal", "tinygal-draft", "tinygpt2", "stories260K")
TOKENS, WINDOW = 8192, 2048


def read(source: Path, text: str) -> list[int]:
    """Tokens by the library that the tokenizer's file is of; Qwen's ranks are read by nobody else's code here.

    transformers 5.17 reads a LLaMA tokenizer's first space otherwise than sentencepiece does, whose file it is.
    """
    if (source / "tokenizer.model").is_file():
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        return [pieces.bos_id(), *pieces.encode(text)]
    if (source / "qwen.tiktoken").is_file():
        return list(tokenizers.load(source, open_model(source).recipe.vocab).encode(text))
    found: list[int] = transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # beside others' work
@pytest.mark.parametrize("name", NAMES)
def test_wikitext_is_as_likely_as_to_transformers(
    name: str, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = assets / name if name == "stories260K" else MODELS / name
    build(str(source), tmp_path / "engine", device="cpu", tune="off")
    text = assets / "text" / "wiki.test.raw"
    code, found, _ = call(capsys, tmp_path / "engine", "--text", text, "--tokens", TOKENS)
    assert code == 0
    ids = read(source, text.read_text(encoding="utf-8")[: 6 * TOKENS])  # more than is needed
    window = found["text"]["window"]
    assert len(ids) >= TOKENS and window <= WINDOW and found["text"]["stride"] == window // 2
    count, mean = by_hand(network(source), ids[:TOKENS], window, window // 2)
    assert found["text"]["scored"] == count == TOKENS - 1
    assert found["nll_per_token"] == pytest.approx(mean, abs=1e-5)
    assert found["original_nll_per_token"] == pytest.approx(mean, abs=1e-5)
