"""The schemas themselves: valid, complete, able to refuse. Each verb's own tests hold its output against its one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from allotrope import cli
from tests.schemas import FOLDER, fits, fits_kept, schema

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
WITHOUT = {"serve"}  # verbs that print no JSON
KEPT = {
    "environment": {"device": {}, "versions": {}, "fingerprint": {"hard": {}, "soft": {}}},
    "date": "2026-01-02T03:04:05Z",
    "engine_digest": "x",
}


def test_every_verb_has_one() -> None:
    assert set(NAMES) == (set(cli.VERBS) - WITHOUT) | {"kept"}


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_says_what_each_key_is(name: str) -> None:
    found = schema(name)
    Draft202012Validator.check_schema(found)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema" and found["type"] == "object"
    assert name == "kept" or found["additionalProperties"] is False, "a key that scripts may rely on is described here"
    assert set(found["required"]) <= set(found["properties"])
    assert not [key for key, one in properties(found) if not one.get("description")]


def properties(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property at every depth."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "properties":
            yield from inner.items()
        for one in inner if isinstance(inner, list) else [inner]:
            yield from properties(one)


def test_a_schema_refuses_what_does_not_fit() -> None:
    shown: dict[str, Any] = {"outputs": [], "ttft_ms": None, "tokens_per_s": 1.5}
    fits("run", shown)
    for change in ({"ttft_ms": "1"}, {"more": 1}, {"outputs": [{"text": "x"}]}):
        with pytest.raises(AssertionError, match=r"run\.json"):
            fits("run", copy.deepcopy(shown) | change)
    with pytest.raises(AssertionError, match="'outputs' is a required property"):
        fits("run", {"ttft_ms": None, "tokens_per_s": 1.5})


def test_a_kept_file_has_its_envelope(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"outputs": [], "ttft_ms": None, "tokens_per_s": 1.5}
    envelope = {**KEPT, "command": "allotrope run e x", "samples": []}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**shown, **envelope}))
    assert fits_kept("run", tmp_path) == shown
    for change in ({"command": "make"}, {"date": "yesterday"}, {"samples": None}, {"environment": {}}, {"more": 1}):
        path.write_text(json.dumps({**shown, **envelope, **change}))
        with pytest.raises(AssertionError, match=r"kept\.json|run\.json"):
            fits_kept("run", tmp_path)
