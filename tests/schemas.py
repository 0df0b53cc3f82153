"""What a verb shows or keeps, held against `allotrope/schemas/`. The folder's listing is the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import allotrope.schemas

FOLDER = Path(allotrope.schemas.__file__).parent


@cache
def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def fits(verb: str, shown: Mapping[str, Any]) -> None:
    """Assert that this is what `allotrope VERB --json` may print."""
    _fits(verb, shown)


def fits_kept(verb: str, folder: Path) -> dict[str, Any]:
    """Assert that the folder's VERB.json is what may be kept there; gives what the verb showed."""
    found: dict[str, Any] = json.loads((folder / f"{verb}.json").read_text(encoding="utf-8"))
    _fits("kept", found)
    own = schema(verb)["properties"]
    shown = {name: value for name, value in found.items() if name in own or name not in schema("kept")["properties"]}
    _fits(verb, shown)
    return shown


def _fits(name: str, values: Mapping[str, Any]) -> None:
    errors = Draft202012Validator(schema(name)).iter_errors(values)
    problems = [f"{name}.json: {error.json_path}: {error.message[:300]}" for error in errors]
    assert not problems, "; ".join(problems)
