"""What a walk through random configs, tokenizers and settings once found wrong, each thing held here by a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from allotrope.api import LLM, SamplingParams
from allotrope.build import build
from allotrope.errors import CheckpointError, RequestError
from allotrope.models.model import open_model
from allotrope.verify.session import Question, verify
from allotrope.verify.verdict import IDENTICAL, WITHIN
from tests.tiny import oracle, rewrite_config, tiny
from tests.verifying import checkpoint

WORDS = 131


def words(folder: Path, count: int = WORDS) -> Path:
    """A tokenizer of whole words, w0 w1 …, as anybody would make one for a tiny model: it has no decoder."""
    made = Tokenizer(WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def built(source: Path, dtype: str = "fp32") -> Path:
    out = source.with_name(f"{source.name}-{dtype}")
    build(str(source), out, device="cpu", dtype=dtype, tune="off")
    return out


def checks(engine: Path) -> dict[str, Any]:
    found = verify(engine, Question(levels=("preflight",))).findings.preflight
    assert found is not None
    return {check.name: check for check in found.checks}


# --- tokenizers


def test_without_a_tokenizer_an_engine_runs_on_token_ids(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    prompt = [5, 9, 7]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = oracle(folder).generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    greedy = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)
    with LLM(built(folder), threads=1) as llm:
        answer = llm.generate([prompt], greedy)[0].outputs[0]
        assert list(answer.token_ids) == expected[0, 3:].tolist() and answer.text == ""
        assert [delta.text for delta in llm.stream([prompt], greedy)] == [""] * 8
        with pytest.raises(RequestError, match="no tokenizer, so it cannot read text; give token ids"):
            llm.generate("some text")
        with pytest.raises(RequestError, match="no text can stop it; use stop_token_ids"):
            llm.generate([prompt], SamplingParams(stop="x"))
        assert llm.generate("", greedy)[0].prompt_token_ids == (1,), "an empty prompt is BOS"


def test_a_tokenizer_without_a_decoder_puts_spaces_between_its_words(tmp_path: Path) -> None:
    source = words(tiny("llama", tmp_path / "model"))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(source)
    with LLM(built(source), threads=1) as llm:
        answer = llm.generate("w5 w9", SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))[0]
        assert answer.prompt_token_ids == (5, 9)
        ids = list(answer.outputs[0].token_ids)
        assert llm.tokenizer.decode(ids) == theirs.decode(ids) == answer.outputs[0].text.strip()
        assert answer.outputs[0].text.startswith(" w"), "it follows the prompt, so a space leads"


def test_transformers_own_reading_of_a_tokenizer_accuses_nobody(tmp_path: Path) -> None:
    """Its Qwen2 class takes a tokenizer.json's words and leaves out how they are cut; then no id is left at all."""
    source = words(tiny("qwen2", tmp_path / "model"))
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    assert theirs("w5 w9")["input_ids"] != [5, 9], "otherwise this tests nothing"
    engine = built(source)
    found = checks(engine)["token ids"]
    assert found.ok is None and "tokenizer.json as it stands" in found.detail


def test_a_changed_tokenizer_is_still_found(tmp_path: Path) -> None:
    engine = built(words(tiny("qwen2", tmp_path / "model")))
    content = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "CharDelimiterSplit", "delimiter": "e"}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    texts = ("w1 w2 e w3",)
    from allotrope import tokenizers
    from allotrope.verify.question import check_tokens

    kept = tokenizers.load(engine / "tokenizer")
    assert check_tokens(kept, open_model(tmp_path / "model"), texts)[0].ok is False


def test_a_sentencepiece_model_is_judged_by_its_own_library(assets: Path, tmp_path: Path) -> None:
    """transformers 5 converts it to something that reads runs of spaces otherwise."""
    source = tiny("llama", tmp_path / "model", vocab_size=32000, hidden_size=24, num_hidden_layers=1)
    for path in (assets / "tokenizers" / "llama2").iterdir():
        shutil.copy(path, source)
    found = checks(built(source))["token ids"]
    assert found.ok is not False, found.detail


# --- settings


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_special_tokens_outside_the_vocabulary_are_none(kind: str, tmp_path: Path) -> None:
    """transformers gives every GPT-2 the ids 50256, however small the vocabulary."""
    source = checkpoint(kind, tmp_path / "model")
    (source / "generation_config.json").unlink()
    ids = {"bos_token_id": 50256, "eos_token_id": [50256, 7], "pad_token_id": 50257}
    rewrite_config(source, lambda config: {**config, **ids})
    model = open_model(source)
    assert model.generation == {"bos_token_id": None, "eos_token_ids": [7], "pad_token_id": None, "defaults": {}}
    assert [note.split()[0] for note in model.notes] == ["bos_token_id", "eos_token_id", "pad_token_id"]
    assert "eos_token_id 50256 is outside the vocabulary of 263" in model.notes[1]
    words(source)
    (source / "bytes.json").unlink()
    engine = built(source)
    assert {check.ok for check in checks(engine).values()} <= {True, None}
    with LLM(engine, threads=1) as llm, pytest.raises(RequestError, match="no token to begin a text with"):
        llm.generate("")


@pytest.mark.parametrize("value", ['"x"', "[1, true]", "1.5", "-2"])
def test_a_special_token_must_be_a_token(value: str, tmp_path: Path) -> None:
    source = tiny("llama", tmp_path)
    (source / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(CheckpointError, match=r"eos_token_id is .*, no token id"):
        _ = open_model(source).generation


PUBLISHED: tuple[tuple[str, dict[str, Any], dict[str, Any] | None], ...] = (
    # family, keys that published configs have, and the same keys with a value that is refused
    ("llama", {"is_llama_config": True, "rope_interleaved": False}, {"is_llama_config": False}),
    ("llama", {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}, None),
    ("gpt2", {"_num_labels": 1, "output_past": True}, None),
    ("qwen2", {"use_mrope": False}, {"use_mrope": True}),
)


@pytest.mark.parametrize(("kind", "keys", "refused"), PUBLISHED)
def test_keys_of_published_configs(
    kind: str, keys: dict[str, Any], refused: dict[str, Any] | None, tmp_path: Path
) -> None:
    """SmolLM2, DistilGPT-2, GPT-2 XL and DeepSeek's distilled Qwens have them."""
    source = tiny(kind, tmp_path)
    rewrite_config(source, lambda config: {**config, **keys})
    open_model(source)
    if refused is not None:
        rewrite_config(source, lambda config: {**config, **refused})
        with pytest.raises(CheckpointError, match=f"{next(iter(refused))} is .*, which is not supported"):
            open_model(source)


@pytest.mark.parametrize("kind", ["llama-dynamic", "qwen"])
def test_scalings_that_heads_of_two_channels_cannot_have(kind: str, tmp_path: Path) -> None:
    source = tiny({"llama-dynamic": "llama"}.get(kind, kind), tmp_path, hidden_size=12)
    if kind != "qwen":  # transformers divides by zero already when it makes such a model
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
        rewrite_config(source, lambda config: {**config, "rope_parameters": rope})
    with pytest.raises(CheckpointError, match="not defined for"):
        open_model(source)


# --- verify


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_llama3_frequencies_are_judged_in_double(dtype: str, tmp_path: Path) -> None:
    """In fp32, where a 16-bit engine's truth lives, transformers' own are off by 2.5e-6 with these numbers."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    source = checkpoint("llama-llama3", tmp_path / "model", head_dim=22, rope_parameters=rope)
    result = verify(built(source, dtype), Question(locate=True, new_tokens=4))
    assert result.findings.verdict in (IDENTICAL, WITHIN) and result.findings.located is None


def test_what_transformers_refuses_is_said(tmp_path: Path) -> None:
    """It has no LLaMA whose width is no multiple of its heads; the engine runs, but nothing can judge it."""
    source = checkpoint(
        "mistral", tmp_path / "model", hidden_size=50, num_attention_heads=3, num_key_value_heads=3, head_dim=16
    )

    def as_llama(config: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in config.items() if key != "sliding_window"}
        return {**kept, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}

    rewrite_config(source, as_llama)
    with pytest.raises(CheckpointError, match=r"transformers refuses the config: .*hidden size"):
        verify(built(source), Question())


# --- sampling

DRAWS = 3000


@pytest.mark.parametrize(
    "asked",
    (
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 7, "top_p": 0.8},
        {"temperature": 3.0, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ),
    ids=str,
)
def test_draws_are_distributed_as_transformers_filters_say(asked: dict[str, Any], tmp_path: Path) -> None:
    """χ² over seeded draws: what the filters cut never comes, the rest in its proportion."""
    source = tiny("llama", tmp_path / "model", vocab_size=23, num_hidden_layers=1)
    with torch.no_grad():
        scores = oracle(source)(torch.tensor([[5, 9]])).logits[0, -1:]
    filters = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    for name, value in asked.items():
        scores = filters[name](value)(None, scores)
    chances = scores.softmax(-1)[0].double().numpy()
    params = [SamplingParams(max_tokens=1, ignore_eos=True, seed=seed, **asked) for seed in range(DRAWS)]
    with LLM(built(source), threads=1, max_num_seqs=512) as llm:
        answers = llm.generate([[5, 9]] * DRAWS, params)
    counts = np.bincount([answer.outputs[0].token_ids[0] for answer in answers], minlength=23)
    assert not counts[chances == 0].any()
    likely = chances * DRAWS > 5
    expected = chances[likely] * DRAWS
    distance = float(((counts[likely] - expected) ** 2 / expected).sum())
    freedom = int(likely.sum()) - 1
    assert freedom >= 3 and distance < freedom + 4 * (2 * freedom) ** 0.5
