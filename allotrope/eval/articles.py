"""What is to be summarised: a CSV with the columns of CNN/DailyMail, and the prompts made of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.eval.files import read_text
from allotrope.tokenizers import Tokenizer

COLUMNS = ("id", "article", "highlights")
SUFFIX = " TL;DR:"
SYSTEM = "You summarize the article that the user sends, in one or two sentences."
_LONGEST_FIELD = 16 << 20  # characters


@dataclass(frozen=True)
class Article:
    """A row: a text, and what somebody made of it."""

    id: str
    text: str
    reference: str


@dataclass(frozen=True)
class Prompt:
    """Token ids that ask for a summary, and how many of the article's tokens were cut off to make them fit."""

    ids: tuple[int, ...]
    cut: int


def read(path: Path, most: int, said: Callable[[str], None] = lambda line: None) -> list[Article]:
    """The first `most` rows that have something to summarise and to compare with; `said` hears of the others."""
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    found = list[Article]()
    try:
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            has = ", ".join(str(name)[:40] for name in (rows.fieldnames or ())[:20]) or "nothing"
            raise UsageError(
                f"no column {' and no column '.join(missing)}; it has {has}",
                where=str(path),
                remedy=f"give a CSV whose first line is {','.join(COLUMNS)}",
            )
        for row in rows:
            if len(found) == most:
                break
            values = [row[name] for name in COLUMNS]
            if None in values:
                where = f"{path}, line {rows.line_num}"
                raise UsageError("a row with fewer fields than columns", where=where, remedy="mend it or leave it out")
            blank = next((name for name in COLUMNS[1:] if not row[name].strip()), None)
            if blank is not None:
                said(f"{path}, line {rows.line_num}: {blank} is blank; left out")
                continue
            found.append(Article(*values))
    except csv.Error as error:
        raise UsageError(f"not a CSV: {error}", where=f"{path}, line {rows.line_num}") from error
    if not found:
        raise UsageError(
            "no rows in it" if rows.line_num < 2 else "no row with a text in it",
            where=str(path),
            remedy="give at least one article",
        )
    return found


def plain_prompt(tokenizer: Tokenizer, article: str, room: int) -> Prompt:
    """The article and then ` TL;DR:`, cut from the left; what the checkpoint puts around a text stays."""
    ids = tokenizer.encode(article + SUFFIX, special=False)
    kept = ids[-(room - len(tokenizer.prefix) - len(tokenizer.suffix)) :]
    return Prompt((*tokenizer.prefix, *kept, *tokenizer.suffix), len(ids) - len(kept))


def chat_prompt(tokenizer: Tokenizer, article: str, room: int) -> Prompt:
    """A conversation that asks for a summary, the article cut from the left until all of it fits."""
    ids = tokenizer.encode(article, special=False, allow_special=False)
    kept, asked = len(ids), _conversation(tokenizer, article)
    while len(asked) > room and kept:
        kept = max(0, kept - max(1, len(asked) - room))  # a cut text may take a token more than its ids were
        asked = _conversation(tokenizer, tokenizer.decode(ids[len(ids) - kept :]))
    return Prompt(tuple(asked), len(ids) - kept)


def _conversation(tokenizer: Tokenizer, article: str) -> list[int]:
    return tokenizer.chat_ids([{"role": "system", "content": SYSTEM}, {"role": "user", "content": article}])


def least_room(tokenizer: Tokenizer, *, chat: bool) -> int:
    """Tokens that a prompt takes whose article is all cut off but for one token."""
    asked = chat_prompt(tokenizer, "", 1) if chat else plain_prompt(tokenizer, "", 1 << 30)
    return len(asked.ids) + 1
