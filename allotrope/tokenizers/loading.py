"""Finding out what kind of tokenizer a folder holds, and putting it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from allotrope.errors import TokenizerError
from allotrope.tokenizers import bytes_vocabulary, side_files
from allotrope.tokenizers.base import Tokenizer, Vocabulary
from allotrope.tokenizers.chat import ChatMl, Template
from allotrope.tokenizers.files import check_inside
from allotrope.tokenizers.jinja_template import JinjaTemplate
from allotrope.tokenizers.side_files import SideFiles

if TYPE_CHECKING:
    from allotrope.tokenizers.sentencepiece_model import SentencepieceVocabulary

# GPT-2's two files by Hugging Face's names, by OpenAI's, and by those under which fairseq and metaseq (OPT) publish.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("gpt2-vocab.json", "gpt2-merges.txt"))
# Of several kinds in one folder the first of these is taken: tokenizer.json is complete in itself and what the
# publishers' libraries prefer; bytes.json is this project's own and never beside a real vocabulary.
KINDS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("tokenizer.json", (("tokenizer.json",),)),
    ("sentencepiece", (("tokenizer.model",),)),
    ("tiktoken", (("*.tiktoken",),)),
    ("vocabulary and merges", PAIRS),
    ("bytes", (("bytes.json",),)),
)
QWEN_CLASSES = ("QWenTokenizer", None)


@dataclass(frozen=True)
class Found:
    """The kind of vocabulary in a folder, and its files."""

    kind: str
    paths: tuple[Path, ...]


def load(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, or of an engine's copy of its files.

    With `vocab_size`, the rows of the model's embedding, a token beyond it is an error here rather than there.
    """
    found = find(folder)
    side = side_files.read(folder).within(vocab_size)
    vocabulary, side = _vocabulary(found, side)
    bos, eos = _named(vocabulary, side, "bos_token"), _named(vocabulary, side, "eos_token")
    pad = _named(vocabulary, side, "pad_token")
    bos = side.bos_id if bos is None else bos
    prefix, suffix = _frame(vocabulary, side, bos, eos)
    tokenizer = Tokenizer(
        vocabulary,
        kind=found.kind,
        bos_id=bos,
        eos_ids=_ends(found.kind, vocabulary, side, eos),
        pad_id=side.pad_id if pad is None else pad,
        prefix=prefix,
        suffix=suffix,
        templates=_templates(found.kind, vocabulary, side),
    )
    if vocab_size is not None:
        _check_fits(tokenizer, vocab_size, found.paths[0].name)
    return tokenizer


def files(folder: Path) -> list[Path]:
    """The files that `load` reads, for an engine to keep: a folder with only these loads the same tokenizer."""
    beside = (folder / name for name in side_files.NAMES)
    return [check_inside(path) for path in (*find(folder).paths, *beside) if path.is_file()]


def find(folder: Path) -> Found:
    """The kind of vocabulary that the folder holds."""
    for kind, choices in KINDS:
        for names in choices:
            matches = [sorted(folder.glob(name)) if "*" in name else [folder / name] for name in names]
            if any(len(paths) > 1 for paths in matches):
                raise TokenizerError(f"several files match {names[0]}", where=folder.name, remedy="keep one of them")
            paths = [path for listed in matches for path in listed if path.is_file()]
            if len(paths) == len(names):
                return Found(kind, tuple(paths))
            if paths:
                missing = next(name for name in names if name != paths[0].name)
                raise TokenizerError(f"{paths[0].name} is there without {missing}", where=folder.name)
    raise TokenizerError(
        "no tokenizer",
        where=folder.name,
        remedy="put tokenizer.json, tokenizer.model, *.tiktoken, or vocab.json with merges.txt there",
    )


def _vocabulary(found: Found, side: SideFiles) -> tuple[Vocabulary, SideFiles]:
    """The vocabulary, and the settings with the defaults of its kind filled in.

    A library that only one kind needs is imported where it is needed: each takes megabytes.
    """
    first = found.paths[0]
    match found.kind:
        case "tokenizer.json":
            from allotrope.tokenizers import tokenizer_json

            return tokenizer_json.load(first, side.added), side
        case "sentencepiece":
            from allotrope.tokenizers import sentencepiece_model

            return _sentencepiece(sentencepiece_model.load(first, side, side.added), side)
        case "tiktoken":
            if side.tokenizer_class not in QWEN_CLASSES:
                raise TokenizerError(f"how {side.tokenizer_class!r:.60} cuts text is not known", where=first.name)
            from allotrope.tokenizers import qwen_ranks

            end = qwen_ranks.NAMED[0]
            return qwen_ranks.load(first), replace(side, names={"eos_token": end, "pad_token": end})
        case "vocabulary and merges":
            from allotrope.tokenizers import bpe

            return bpe.load(first, found.paths[1], side)
        case _:
            names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
            side = replace(side, names=names, bos_id=None, eos_ids=(), pad_id=None)
            return bytes_vocabulary.load(first), replace(side, add_bos=True, add_eos=False)


def _sentencepiece(vocabulary: SentencepieceVocabulary, side: SideFiles) -> tuple[Vocabulary, SideFiles]:
    """The model names its own beginning and end; LLaMA's habit is the beginning only."""
    add_bos = True if side.add_bos is None else side.add_bos
    return vocabulary, replace(side, names={**vocabulary.names, **side.names}, add_bos=add_bos)


def _named(vocabulary: Vocabulary, side: SideFiles, role: str) -> int | None:
    """The id of the token that has this role."""
    token = side.names.get(role)
    number = None if token is None else vocabulary.token_id(token)
    if token is not None and number is None:
        raise TokenizerError(
            f"{role} {token[:60]!r} is not in the vocabulary",
            where=side_files.NAMES[0],
            remedy="restore the tokenizer's files from the publisher's checkpoint",
        )
    return number


def _frame(
    vocabulary: Vocabulary, side: SideFiles, bos: int | None, eos: int | None
) -> tuple[Sequence[int], Sequence[int]]:
    """What goes around a text: as the settings say, else as the file's own post-processor does."""
    if side.add_bos is None and side.add_eos is None and vocabulary.frame is not None:
        return vocabulary.frame
    return (
        [bos] if side.add_bos and bos is not None else [],
        [eos] if side.add_eos and eos is not None else [],
    )


def _ends(kind: str, vocabulary: Vocabulary, side: SideFiles, eos: int | None) -> tuple[int, ...]:
    """The ids that end a generation: as generation_config.json or config.json has them, else the tokenizer's own.

    The first Qwen's publisher also stops at both chat marks unless its generation_config.json says "raw".
    """
    ends = side.eos_ids or (() if eos is None else (eos,))
    if kind == "tiktoken" and side.chat_format in (None, "chatml"):
        marks = (vocabulary.specials["<|im_end|>"], vocabulary.specials["<|im_start|>"])
        ends = (*ends, *(mark for mark in marks if mark not in ends))
    return ends


def _templates(kind: str, vocabulary: Vocabulary, side: SideFiles) -> dict[str, Template]:
    templates: dict[str, Template] = {
        name: JinjaTemplate(source, side.names, vocabulary.specials, f"chat template {name!r:.40}")
        for name, source in side.templates.items()
    }
    if kind == "tiktoken" and not templates:
        templates["default"] = ChatMl()
    return templates


def _check_fits(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Every id that the tokenizer can give must have a row in the model's embedding."""
    named = [number for number in (tokenizer.bos_id, tokenizer.pad_id, *tokenizer.eos_ids) if number is not None]
    largest = max(tokenizer.vocab_size - 1, *named, -1)
    if largest >= vocab_size:
        raise TokenizerError(
            f"it has ids up to {largest:,}, but the model's vocabulary ends at {vocab_size - 1:,}",
            where=where,
            remedy="the tokenizer belongs to another checkpoint",
        )
