"""English for tinygpt2: short stories and Shakespeare, from the assets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from allotrope.errors import UsageError

_END = "<|endoftext|>"
_SCENE = 4000  # characters of Shakespeare to a document, ended where a speech ends
_EVERY = 20  # each twentieth document is held out


def stories(assets: Path, *, heldout: bool) -> Iterator[dict[str, str]]:
    """Documents of one split, in the order of the files."""
    for path, cut in zip(texts(assets), (_by_mark, _by_speech), strict=True):
        for at, text in enumerate(cut(path.read_text(encoding="utf-8"))):
            if (at % _EVERY == _EVERY - 1) == heldout:
                yield {"project": path.stem, "path": f"{at:05}", "text": text}


def texts(assets: Path) -> list[Path]:
    """The files that are read, which must be there."""
    paths = [assets / "text" / f"{project}.txt" for project in ("tinystories", "shakespeare")]
    for path in paths:
        if not path.is_file():
            raise UsageError("no such text", where=str(path), remedy="point --assets or ALLOTROPE_ASSETS to the assets")
    return paths


def _by_mark(text: str) -> list[str]:
    """Whole stories: the file is cut off in the middle of its last one. One story told twice is told once."""
    told = (re.sub(r"\n\s*\n", "\n", story).strip() for story in text.split(_END)[:-1])
    return [story + "\n" for story in dict.fromkeys(told) if len(story) > 100]


def _by_speech(text: str) -> list[str]:
    documents, size, speeches = [], 0, []
    for speech in text.strip().split("\n\n"):
        speeches.append(speech)
        size += len(speech)
        if size >= _SCENE:
            documents.append("\n\n".join(speeches) + "\n")
            speeches, size = [], 0
    return [*documents, "\n\n".join(speeches) + "\n"] if speeches else documents
