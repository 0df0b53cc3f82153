"""Text as token ids on disk: each part of a model's reading is cut into pieces and tokenised once, by all cores.

A piece is what lies together in a window: a document, or a stretch of one that ends before a line at the margin. Ids
of all pieces lie one after another; `starts` says where each begins. Where not all tokens are to be learned alike,
`weights` has a percentage per token.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from allotrope import tokenizers
from allotrope.tokenizers import Tokenizer
from tools.train import reading
from tools.train.spec import Part, Spec

Ids = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.uint8]
CHARACTERS = 2.9  # of a token, cautiously: pieces are cut to so many times the window
GIVEN = {"summary": 30, "chat": 10}  # percent: what is given is learned less than what is asked for
KEEP_HEAD = 3  # of four functions that are too long, so many keep their head and one its tail
ROWS_PER_TASK = 256


@dataclass(frozen=True)
class Pieces:
    """A part's tokens."""

    ids: Ids
    starts: npt.NDArray[np.int64]  # one more than there are pieces
    weights: Weights | None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: int) -> tuple[Ids, Weights | None]:
        cut = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.ids[cut], None if self.weights is None else self.weights[cut]


def begin(tokenizer: Tokenizer) -> int:
    """What stands before a text: the vocabulary's beginning, else the mark that ends the text before."""
    return tokenizer.eos_ids[0] if tokenizer.bos_id is None else tokenizer.bos_id


def pieces(spec: Spec, part: Part, split: str, work: Path, folder: Path) -> Pieces:
    """The part's tokens, kept in the work folder for the next run. `folder` holds the vocabulary."""
    stem = work / "tokens" / f"{spec.name}-{part.label}-{split}-{_key(spec, part, split, work, folder)}"
    files = [stem.with_name(f"{stem.name}.{kind}.npy") for kind in ("ids", "starts", "weights")]
    if not files[1].is_file():
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write(files, _tokenise(spec, part, split, work, folder))
    ids, starts = (np.load(path, mmap_mode="r") for path in files[:2])
    return Pieces(ids, starts, np.load(files[2], mmap_mode="r") if files[2].is_file() else None)


def _key(spec: Spec, part: Part, split: str, work: Path, folder: Path) -> str:
    """Changes with anything that the tokens depend on."""
    vocabulary = [reading.digest(path) for path in tokenizers.files(folder)]
    told = [asdict(part), spec.recipe.window, vocabulary, reading.digest(reading.existing(work, part, split))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _write(files: Sequence[Path], found: Pieces) -> None:
    for path, array in ((files[0], found.ids), (files[2], found.weights), (files[1], found.starts)):
        if array is not None:
            partial_file = path.with_suffix(f".{os.getpid()}.npy")
            np.save(partial_file, array)
            partial_file.replace(path)


def _tokenise(spec: Spec, part: Part, split: str, work: Path, folder: Path) -> Pieces:
    tasks = list(_grouped(reading.rows(work, part, split), ROWS_PER_TASK))
    make = partial(encode_rows, folder=folder, part=part, window=spec.recipe.window)
    processes = min(len(os.sched_getaffinity(0)), 12, len(tasks))
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            made = [piece for group in pool.imap(make, tasks) for piece in group]
    else:
        made = [piece for group in map(make, tasks) for piece in group]
    if not made:
        raise SystemExit(f"{spec.name}: no rows of {part.label} in {reading.path_of(work, part, split)}")
    lengths = np.array([len(ids) for ids, _ in made], np.int64)
    weights = [weights for _, weights in made if weights is not None]
    return Pieces(
        np.concatenate([ids for ids, _ in made]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate(weights) if weights else None,
    )


def _grouped(rows: Iterable[reading.Row], size: int) -> Iterator[list[reading.Row]]:
    group: list[reading.Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


_OPEN: dict[Path, Tokenizer] = {}  # a process opens a vocabulary once


def encode_rows(rows: Sequence[reading.Row], folder: Path, part: Part, window: int) -> list[tuple[Ids, Weights | None]]:
    """The pieces of some rows."""
    if folder not in _OPEN:
        _OPEN[folder] = tokenizers.load(folder)
    tokenizer = _OPEN[folder]
    match part.form:
        case "chat":
            found = [piece for row in rows if (piece := _chat(tokenizer, row["messages"], window)) is not None]
        case "summary":
            found = [_summary(tokenizer, row, place, window) for place, row in enumerate(rows)]
        case _:
            texts = (reading.plain_text(row, part) for row in rows)
            found = [piece for text in texts for piece in _text(tokenizer, text, window)]
    return [
        (np.array(ids, np.uint16), None if weights is None else np.array(weights, np.uint8)) for ids, weights in found
    ]


Piece = tuple[list[int], list[int] | None]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text's own ids; what looks like a special token in it is text."""
    return tokenizer.encode(text, special=False, allow_special=False)


def _text(tokenizer: Tokenizer, text: str, window: int) -> Iterator[Piece]:
    cuts = stretches(text, int(CHARACTERS * window))
    first, end = begin(tokenizer), tokenizer.eos_ids[0]
    opening = [] if first == end else [first]
    for place, cut in enumerate(cuts):
        yield [*opening, *_encode(tokenizer, cut), *([end] if place == len(cuts) - 1 else [])], None


def stretches(text: str, limit: int) -> list[str]:
    """The text in parts of at most `limit` characters, cut before a line at the margin if one is there."""
    parts = []
    while len(text) > limit:
        place = _margin(text, limit // 2, limit)
        parts.append(text[:place])
        text = text[place:]
    return [*parts, text]


def _margin(text: str, low: int, high: int) -> int:
    """The last place from `low` to `high` where a paragraph at the margin begins; a line; or `high`."""
    place = high
    while (place := text.rfind("\n\n", low, place)) >= 0:
        if not text[place + 2 : place + 3].isspace():
            return place + 2
    line = text.rfind("\n", low, high)
    return high if line < 0 else line + 1


def _summary(tokenizer: Tokenizer, row: reading.Row, place: int, window: int) -> Piece:
    """A function, the mark, its summary. Of a function that is too long its head stays, now and then its tail."""
    opening = begin(tokenizer)
    given = [opening, *_encode(tokenizer, reading.question(row))]
    whole = [
        opening,
        *_encode(tokenizer, reading.plain_text(row, Part("functions", 1, "summary"))),
        tokenizer.eos_ids[0],
    ]
    asked = whole[len(given) :]
    mark = 8  # tokens at the end of what is given, the mark among them, always stay
    if (excess := len(whole) - window) > 0:
        head = len(given) - mark
        keep = head - excess
        body = given[:keep] if place % 4 < KEEP_HEAD else [opening, *given[head - keep + 1 : head]]
        given = [*body, *given[head:]]
    return [*given, *asked], [GIVEN["summary"]] * len(given) + [100] * len(asked)


def _chat(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], window: int) -> Piece | None:
    """A conversation as the tokenizer writes it, answers and their ends learned wholly; None if it is too long."""
    ids = tokenizer.chat_ids(messages, add_generation_prompt=False)
    if len(ids) > window:
        return None
    weights = [GIVEN["chat"]] * len(ids)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(tokenizer.chat_ids(messages[:place]))
            stop = start + len(_encode(tokenizer, message["content"])) + 1
            weights[start:stop] = [100] * (stop - start)
    return ids, weights
