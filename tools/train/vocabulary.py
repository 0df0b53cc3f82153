"""Training the vocabularies, each written in its family's own files."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from allotrope.tokenizers import patterns
from allotrope.tokenizers.pieces import byte_level
from tools.train import reading
from tools.train.spec import MODELS, Spec, load

STARCODER = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
GALACTICA = (
    *("<s>", "<pad>", "</s>", "<unk>", "[START_REF]", "[END_REF]", "[IMAGE]", "<fragments>", "</fragments>"),
    *("<work>", "</work>", "[START_SUP]", "[END_SUP]", "[START_SUB]", "[END_SUB]", "[START_DNA]", "[END_DNA]"),
    *("[START_AMINO]", "[END_AMINO]", "[START_SMILES]", "[END_SMILES]", "[START_I_SMILES]", "[END_I_SMILES]"),
)
GPT2 = "<|endoftext|>"
QWEN_SPECIALS = 208  # three named ones and 205 spare


def train(spec: Spec, work: Path, out: Path = MODELS) -> Path:
    """Learn the model's vocabulary from its training text; the folder with the files."""
    folder, shared = out / spec.name, spec.vocabulary.shared
    texts = [] if shared else list(sample(spec, work))  # before the folder is there: the corpus may be missing
    folder.mkdir(parents=True, exist_ok=True)
    if shared:
        train_if_absent(load(shared), work, out)
        shutil.copy(out / shared / "tokenizer.json", folder)
    else:
        WRITERS[spec.vocabulary.style](spec.vocabulary.size, texts, folder)
    write_json(folder / "tokenizer_config.json", spec.tokenizer)
    write_json(folder / "config.json", spec.config)
    write_json(folder / "generation_config.json", spec.generation)
    return folder


def train_if_absent(spec: Spec, work: Path, out: Path) -> None:
    """Another model's vocabulary is needed first."""
    if not (out / spec.name / "tokenizer.json").is_file():
        train(spec, work, out)


def sample(spec: Spec, work: Path) -> Iterator[str]:
    """Rows spread evenly over each part, so many bytes of each as its share says."""
    for part in spec.parts:
        budget = spec.vocabulary.megabytes * 1e6 * part.share
        texts = [reading.plain_text(row, part) for row in reading.rows(work, part, "train")]
        if not texts:
            raise SystemExit(f"{spec.name}: no rows of {part.label} in {work}; run the corpus step first")
        every = max(1.0, sum(map(len, texts)) / budget)
        yield from (texts[int(place * every)] for place in range(int(len(texts) / every)))


def starcoder(size: int, texts: list[str], folder: Path) -> None:
    """tokenizer.json: digits alone, GPT-2's words, the specials first."""
    library = _byte_level(size, texts, _digits_and_words(), STARCODER)
    library.save(str(folder / "tokenizer.json"))


def galactica(size: int, texts: list[str], folder: Path) -> None:
    """tokenizer.json: digits alone, GPT-2's words, Galactica's specials first and in its order."""
    library = _byte_level(size, texts, _digits_and_words(), GALACTICA)
    library.save(str(folder / "tokenizer.json"))


def gpt2(size: int, texts: list[str], folder: Path) -> None:
    """vocab.json and merges.txt, the one special token last."""
    from tokenizers import pre_tokenizers

    library = _byte_level(size - 1, texts, pre_tokenizers.ByteLevel(add_prefix_space=False), ())
    model = json.loads(library.to_str())["model"]
    vocabulary = {**model["vocab"], GPT2: size - 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def qwen(size: int, texts: list[str], folder: Path) -> None:
    """qwen.tiktoken: a line "base64 rank" for every token but the specials, whose ids follow."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(patterns.QWEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library = _byte_level(size - QWEN_SPECIALS, texts, words, (), normalizers.NFC())
    ranks = sorted(library.get_vocab().items(), key=lambda item: item[1])
    lines = (f"{base64.b64encode(byte_level(token)).decode()} {rank}\n" for token, rank in ranks)
    (folder / "qwen.tiktoken").write_text("".join(lines), encoding="ascii")


def sentencepiece(size: int, texts: list[str], folder: Path) -> None:
    """tokenizer.model as LLaMA's: BPE, bytes for what is unknown, digits alone, spaces kept."""
    import sentencepiece as library

    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line)
    library.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        max_sentence_length=16384,
        num_threads=1,  # more of them merge in an order that varies
        minloglevel=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


WRITERS = {"starcoder": starcoder, "galactica": galactica, "gpt2": gpt2, "qwen": qwen, "sentencepiece": sentencepiece}


def _digits_and_words() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _byte_level(size: int, texts: Iterable[str], words: Any, specials: Iterable[str], normalizer: Any = None) -> Any:
    """A byte-level BPE vocabulary of exactly `size` ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = words
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    if (found := library.get_vocab_size()) != size:
        raise SystemExit(f"the text gives only {found:,} tokens of {size:,}; give more text or ask for fewer")
    return library


def write_json(path: Path, content: object) -> None:
    """As publishers write it: two spaces, a newline at the end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
