"""Reading a tokenizer's files: the size comes first, then strict JSON, and every error names the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from allotrope.errors import TokenizerError
from allotrope.paths import outside

MIB = 1 << 20
Json = Mapping[str, object]


def check_inside(path: Path) -> Path:
    """The path, if it is no link out of its folder: a checkpoint has no business with other files of this machine."""
    try:
        real = outside(path)
    except (OSError, RuntimeError) as error:
        raise TokenizerError(f"cannot be read ({error})", where=path.name) from error
    if real is not None:
        raise TokenizerError(f"is a link out of the folder, to {real}", where=path.name, remedy="copy the file in")
    return path


def read_bytes(path: Path, limit: int) -> bytes:
    """The file's bytes, refused by its place and its size before anything is read."""
    check_inside(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise TokenizerError(
                f"{size:,} bytes is more than the {limit:,} that a file of this kind may have",
                where=path.name,
                remedy="use the publisher's original file",
            )
        with path.open("rb") as file:
            data = file.read(limit + 1)  # a file that grows meanwhile is caught below
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror})", where=path.name) from error
    if len(data) > limit:
        raise TokenizerError(f"grew past {limit:,} bytes while it was read", where=path.name)
    return data


def read_text(path: Path, limit: int) -> str:
    """The file's text, which must be UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"is not UTF-8 at byte {error.start}", where=path.name) from error


def read_json(path: Path, limit: int, *, max_items: int | None = None) -> Json:
    """A JSON object. `max_items` bounds entries by counting commas, before Python objects are made of them."""
    data = read_bytes(path, limit)
    if max_items is not None and (items := data.count(b",")) > max_items:
        raise TokenizerError(
            f"about {items:,} entries is more than the {max_items:,} allowed",
            where=path.name,
            remedy="use the publisher's original file",
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise TokenizerError(f"is not JSON ({reason})", where=path.name) from error
    if not isinstance(value, dict):
        raise TokenizerError("is not a JSON object", where=path.name)
    return cast(Json, value)


def optional_json(path: Path, limit: int = MIB) -> Json:
    """As `read_json`, or an empty object where there is no such file."""
    return read_json(path, limit) if path.is_file() else {}
