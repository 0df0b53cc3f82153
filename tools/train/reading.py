"""What the corpus step wrote, as a model reads it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.train.corpus.forms import docsum_prompt, docsum_text
from tools.train.corpus.rows import read
from tools.train.spec import Part

Row = dict[str, Any]


def path_of(work: Path, part: Part, split: str) -> Path:
    """The file that holds a part's rows; `split` is train or heldout."""
    return work / part.kind / f"{split}.jsonl.xz"


def existing(work: Path, part: Part, split: str) -> Path:
    """That file, which must be there."""
    path = path_of(work, part, split)
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; run `python -m tools.train corpus` first, or give --work")
    return path


def rows(work: Path, part: Part, split: str) -> Iterator[Row]:
    """The part's rows in the order of the file."""
    path = existing(work, part, split)
    return (row for row in read(path) if not part.only or row["project"] == part.only)


def plain_text(row: Row, part: Part) -> str:
    """All that a row says."""
    match part.form:
        case "text":
            return str(row["text"])
        case "function":
            return documented(row["code"], row["summary"])
        case "summary":
            return docsum_text(row["code"], row["summary"])
        case "chat":
            return "\n".join(str(message["content"]) for message in row["messages"])
    raise SystemExit(f"{part.label}: no such form; there is text, function, summary and chat")


def question(row: Row) -> str:
    """The part of a summary's text that is given, not asked for."""
    return docsum_prompt(row["code"])


def documented(code: str, summary: str) -> str:
    """The function with its summary as a docstring; as it is where it has no body on lines of its own."""
    try:
        [node] = ast.parse(code).body
    except (SyntaxError, ValueError):
        return code
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return code
    lines, first = code.splitlines(), node.body[0].lineno - 1
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    if not indent or '"""' in summary or "\\" in summary or lines[first - 1].lstrip().startswith("@"):
        return code
    while first > node.lineno and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return "\n".join([*lines[:first], f'{indent}"""{summary}"""', *lines[first:]]) + "\n"


def digest(path: Path) -> str:
    """The file's SHA-256, so that a training run names what it read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
