"""The prompts that a verification asks: texts, and seeded random ids from one token to the limit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.tokenizers import Tokenizer

LONGEST_FILE = 64 << 20  # bytes
TEXTS = (
    "The lighthouse keeper counted the waves until",
    "def mean(values):\n    return",
    "Zwölf Boxkämpfer jagen Viktor – 12 × 7 =",
)
LONGEST = 256


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how many greedy tokens to ask for after them."""

    name: str
    ids: tuple[int, ...]
    new: int
    random: bool = False  # no text, but random ids

    def with_text(self, text: Sequence[int]) -> tuple[int, ...]:
        """The prompt and what follows."""
        return (*self.ids, *text)


def default_prompts(tokenizer: Tokenizer | None, vocab: int, limit: int, seed: int, new: int) -> tuple[Prompt, ...]:
    """Fixed texts where they can be read, and random ids of 1, a few, many and as many as the limit allows.

    The text of a prompt and its continuation together never exceed `limit`, the longest sequence for
    which engine and original are the same model.
    """
    source = random.Random(seed)
    found = list[Prompt]()
    for number, text in enumerate(TEXTS if tokenizer is not None else ()):
        ids = tokenizer.encode(text) if tokenizer is not None else []
        if known := [token for token in ids if token < vocab][:limit]:
            found.append(_prompt(f"text {number + 1}", known, limit, new))
    for length in dict.fromkeys((1, min(13, limit), min(60, limit), min(LONGEST, limit))):
        drawn = [source.randrange(vocab) for _ in range(length)]
        found.append(replace(_prompt(f"random {length}", drawn, limit, new), random=True))
    return tuple(found)


def read_prompts(path: Path, tokenizer: Tokenizer | None, vocab: int, limit: int, new: int) -> tuple[Prompt, ...]:
    """One prompt per line; a line that is a JSON list of whole numbers is taken as token ids."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"prompts cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UsageError("prompts cannot be read: not UTF-8", where=str(path)) from error
    if len(content) > LONGEST_FILE:  # a device may never end
        raise UsageError(f"prompts have over {LONGEST_FILE:,} bytes", where=str(path), remedy="give fewer")
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            ids = _ids(line, tokenizer, f"{path}, line {number}")
            if not ids or not all(0 <= token < vocab for token in ids):
                raise UsageError(f"token ids must be 0 to {vocab - 1}", where=f"{path}, line {number}")
            if len(ids) > limit:
                problem = f"{len(ids)} tokens, {limit} can be compared"
                raise UsageError(problem, where=f"{path}, line {number}", remedy="shorten it")
            found.append(_prompt(f"line {number}", ids, limit, new))
    if not found:
        raise UsageError("no prompts in it", where=str(path))
    if not any(prompt.new for prompt in found):
        problem = f"every prompt has {limit} tokens, the most there can be, so nothing can follow"
        raise UsageError(problem, where=str(path), remedy="shorten one")
    return tuple(found)


def _ids(line: str, tokenizer: Tokenizer | None, where: str) -> list[int]:
    if line.lstrip().startswith("["):
        try:
            ids = json.loads(line)
        except ValueError:
            ids = None
        if isinstance(ids, list) and all(type(token) is int for token in ids):
            return ids
    if tokenizer is None:
        raise UsageError(
            "a text, but the engine has no tokenizer", where=where, remedy="give token ids, [1, 2, 3] on a line"
        )
    return list(tokenizer.encode(line))


def _prompt(name: str, ids: Sequence[int], limit: int, new: int) -> Prompt:
    return Prompt(name, tuple(ids), max(0, min(new, limit - len(ids))))
