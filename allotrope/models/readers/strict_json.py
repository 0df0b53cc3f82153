"""The JSON files beside the weights, read as if a stranger had written them, since one has."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from allotrope.errors import CheckpointError

CONFIG_LIMIT = 4 << 20
INDEX_LIMIT = 64 << 20


def read_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The object in a JSON file: no duplicate keys, no NaN, no infinity, no more than `limit` bytes."""
    where = str(path)
    if not path.is_file():
        raise CheckpointError("not a regular file", where=where)
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=where) from error
    if len(raw) > limit:
        raise CheckpointError(f"{path.stat().st_size} bytes, over the bound of {limit}", where=where)
    try:
        found = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        raise CheckpointError("not valid JSON: nested too deeply", where=where) from None
    except ValueError as error:  # syntax, UTF-8, and what the hooks below refuse
        raise CheckpointError(f"not valid JSON: {error}", where=where) from None
    if not isinstance(found, dict):
        raise CheckpointError("not a JSON object", where=where)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is not finite")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that JSON has")
