"""What an evaluation reads: held-out documents and examples, and a sample of the training text for the trigram."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.tokenizers import Tokenizer
from tools.train import reading
from tools.train.corpus.forms import chatml, pages
from tools.train.data import begin
from tools.train.spec import Part, Spec

SEED = 0
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)


@dataclass(frozen=True)
class Function:
    """A function without its docstring, and that docstring's first sentence."""

    name: str
    code: str
    summary: str


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the answer that is expected."""

    messages: tuple[Mapping[str, str], ...]
    kind: str

    @property
    def answer(self) -> str:
        """What the assistant says last."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Text:
    """Documents as token ids with the marks around them, and as bytes. A document's first token is given, not told."""

    documents: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    content: bytes

    @property
    def tokens(self) -> int:
        """How many are told."""
        return sum(len(ids) - 1 for ids in self.documents)


def bundled(data: Path, name: str) -> list[str]:
    """The documents of a model's held-out text."""
    path = data / f"{name.removesuffix('-draft')}_heldout.txt"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = pages(file.read())
    except OSError as error:
        raise UsageError(f"the held-out text cannot be read: {error.strerror}", where=str(path)) from error
    if not any(found):
        raise UsageError("the held-out text is empty", where=str(path), remedy="run the corpus step again")
    return found


def functions(data: Path) -> list[Function]:
    """The test set of summaries: id, article, highlights."""
    path = data / "docsum_test.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Function(_name(row["article"]), row["article"], row["highlights"]) for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"the test set cannot be read: {error.strerror}", where=str(path)) from error


def conversations(work: Path, spec: Spec) -> list[Conversation]:
    """The held-out conversations, in an order that mixes their kinds."""
    found = [Conversation(tuple(row["messages"]), row["kind"]) for row in reading.rows(work, spec.parts[0], "heldout")]
    random.Random(SEED).shuffle(found)
    return found


def read(tokenizer: Tokenizer, documents: Iterable[str], *, chat: bool) -> Text:
    """Documents between the marks that begin and end one; conversations as the tokenizer writes them."""
    listed = list(documents)
    encoded = [document.encode() for document in listed]
    ids = [_conversation(tokenizer, one) if chat else _document(tokenizer, one) for one in listed]
    return Text(tuple(map(tuple, ids)), tuple(map(len, encoded)), b"".join(encoded))


def corpus(work: Path, spec: Spec, split: str, limit: int) -> list[str]:
    """A sample of the work folder, about `limit` bytes: the parts of the form that the model is mostly trained on."""
    parts = [part for part in spec.parts if part.form == spec.parts[0].form]
    whole = sum(part.share for part in parts)
    return [
        text
        for part in parts
        for text in sample([_said(row, part) for row in reading.rows(work, part, split)], limit * part.share / whole)
    ]


def sample(documents: Sequence[str], limit: float) -> list[str]:
    """Whole documents, drawn without replacement, until they have `limit` bytes together (all if they have fewer)."""
    order = list(documents)
    random.Random(SEED).shuffle(order)
    found, size = list[str](), 0
    for text in order:
        if size >= limit:
            break
        found.append(text)
        size += len(text.encode())
    return found


def messages(page: str) -> list[dict[str, str]]:
    """The turns of a conversation that was written as ChatML."""
    found = [{"role": role, "content": content} for role, content in _TURN.findall(page)]
    if chatml(found) != page:
        raise UsageError(f"no conversation in ChatML: {page[:60]!r}")
    return found


def _said(row: reading.Row, part: Part) -> str:
    return chatml(row["messages"]) if part.form == "chat" else reading.plain_text(row, part)


def _document(tokenizer: Tokenizer, text: str) -> list[int]:
    return [begin(tokenizer), *tokenizer.encode(text, special=False, allow_special=False), tokenizer.eos_ids[0]]


def _conversation(tokenizer: Tokenizer, page: str) -> list[int]:
    return tokenizer.chat_ids(messages(page), add_generation_prompt=False)


def _name(code: str) -> str:
    found = re.search(r"^\s*(?:async\s+)?def\s+(\w+)", code, re.MULTILINE)
    if found is None:
        raise UsageError(f"no function: {code[:60]!r}", where="docsum_test.csv")
    return found[1]
