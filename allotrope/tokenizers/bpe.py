"""GPT-2's vocabulary and merges, under each of the names that publishers give the two files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE

from allotrope.errors import TokenizerError
from allotrope.tokenizers import patterns, pieces
from allotrope.tokenizers.files import MIB, Json, read_json, read_text
from allotrope.tokenizers.hf import LibraryVocabulary
from allotrope.tokenizers.side_files import Added, SideFiles
from allotrope.tokenizers.tokenizer_json import MAX_TOKENS, check_ids, check_merges

MAX_BYTES = 32 * MIB
GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast", "OPTTokenizer", "CodeGenTokenizer", "CodeGenTokenizerFast")
QWEN2 = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
QWEN_MODELS = ("qwen2", "qwen3")


def load(vocab_path: Path, merges_path: Path, side: SideFiles) -> tuple[LibraryVocabulary, SideFiles]:
    """Build what a tokenizer.json would have said from the two files and the name of the tokenizer's class.

    Also the settings, with what these families take for granted where their files are silent.
    """
    vocab = read_json(vocab_path, MAX_BYTES, max_items=MAX_TOKENS)
    check_ids(vocab, vocab_path.name)
    merges = _merges(merges_path)
    check_merges(vocab, merges, merges_path.name)
    library = Library(BPE(vocab=cast(dict[str, int], dict(vocab)), merges=merges))
    qwen2 = _is_qwen2(side, vocab_path.name)
    side = _with_defaults(side, vocab, qwen2)
    if qwen2:
        library.normalizer = normalizers.NFC()
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(patterns.QWEN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=bool(side.add_prefix_space), use_regex=False),
            ]
        )
    else:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(side.add_prefix_space))
    library.decoder = decoders.ByteLevel()
    vocabulary = LibraryVocabulary(
        library, pieces.byte_level, leading_space=False, added=side.added, where=vocab_path.name, raw_added=True
    )
    return vocabulary, side


def _with_defaults(side: SideFiles, vocab: Json, qwen2: bool) -> SideFiles:
    """GPT-2 ends and begins with its one special token and adds nothing; OPT begins every text with </s>."""
    if qwen2:
        if not side.added:
            raise TokenizerError(
                "the added tokens are missing", where="tokenizer_config.json", remedy="copy the publisher's file"
            )
        return side
    if vocab.get("<pad>") == 1 and vocab.get("</s>") == 2:
        names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"} | dict(side.names)
        side = replace(side, add_bos=True if side.add_bos is None else side.add_bos)
    elif "<|endoftext|>" in vocab:
        names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | dict(side.names)
    else:
        return side
    declared = {token.content for token in side.added}
    more = [Added(token, None, special=True) for token in dict.fromkeys(names.values()) if token not in declared]
    return replace(side, names=names, added=(*side.added, *more))


def _is_qwen2(side: SideFiles, where: str) -> bool:
    """By the tokenizer's class, else by the model's type; a class that cuts text otherwise is refused by name."""
    name = side.tokenizer_class
    if name in QWEN2:
        return True
    if name in GPT2:
        return False
    if name is None:
        return side.model_type in QWEN_MODELS
    raise TokenizerError(
        f"tokenizer_class {name[:60]!r} cannot be built from a vocabulary and merges here",
        where=where,
        remedy="save the tokenizer as a tokenizer.json",
    )


def _merges(path: Path) -> list[tuple[str, str]]:
    text = read_text(path, MAX_BYTES)
    if (count := text.count("\n")) > MAX_TOKENS:
        raise TokenizerError(f"{count:,} merges is more than the {MAX_TOKENS:,} allowed", where=path.name)
    merges = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise TokenizerError(f"line {number} is no pair of tokens", where=path.name)
        merges.append((left, right))
    return merges
