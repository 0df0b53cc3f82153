"""`engine.json`: everything that an engine is but its weights, read as strictly as it was written.

{"digest": "<of every byte after this line's comma>",
 "schema": 1, "version": …, "family": …, "plan": {…}, …}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from allotrope.artifact import digests
from allotrope.artifact.plan import Plan
from allotrope.errors import EngineError

SCHEMA = 3
FILE = "engine.json"
_LARGEST = 256 * 2**20  # a plan of a thousand layers is a few MB
_HEAD = re.compile(rb'\{"digest": "([0-9a-f]{64})",')
FETCH = ("near", "far")  # into which cache the native core fetches weights ahead: the nearest, or the second
_HEAD_BYTES = 128  # more than the head has


@dataclass(frozen=True)
class FileFacts:
    """One file of the engine. For weights, `digest` covers the header and `tensors` each tensor's bytes."""

    bytes: int
    digest: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """An engine's description. Written once, never changed."""

    schema: int
    version: str  # of Allotrope
    family: str
    plan: Plan
    config: Mapping[str, Any]  # the checkpoint's own, as published
    generation: Mapping[str, Any]  # bos_token_id, eos_token_ids, pad_token_id, …
    source: Mapping[str, Any]  # path, digest, random
    dtype: str  # of compute
    device: Mapping[str, Any]  # kind, name, arch, …
    fingerprint: Mapping[str, Any]  # hard, soft
    tactics: Mapping[str, int]  # "op/name" → version
    limits: Mapping[str, int]  # max_batch, max_len
    options: Mapping[str, Any]  # what the builder was asked
    tuned: Mapping[str, Any]  # what it measured beside the plan's tactics: fetch, where the native core computes
    evidence: Mapping[str, Any]  # choices, checks
    files: Mapping[str, FileFacts]
    kernels: Mapping[str, Any] = field(default_factory=dict)  # machine code that tactics bring, see ops.kernels

    def to_bytes(self) -> bytes:
        """The file's content."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["plan"] = self.plan.to_json()
        data["files"] = {name: asdict(facts) for name, facts in self.files.items()}
        body = json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False).encode()[1:]
        return b'{"digest": "%s",' % digests.of_bytes(body).encode() + body


def read(folder: Path) -> Manifest:
    """The manifest of an engine folder; every doubt is an error."""
    path = folder / FILE
    content = _content(folder, path)
    data = _object(content, path)
    schema = data.get("schema")
    if schema != SCHEMA:
        problem = f"schema version {schema!r}, this Allotrope reads {SCHEMA}"
        raise EngineError(problem, where=str(path), remedy="another version built it; build it again")
    head = _HEAD.match(content)
    if head is None or digests.of_bytes(content[head.end() :]) != head[1].decode():
        raise EngineError("its content does not match its own digest", where=str(path), remedy=REBUILD)
    del data["digest"]
    return _manifest(data, path)


def digest(folder: Path) -> str | None:
    """The digest that an engine folder's manifest states of itself; None where there is none to be read."""
    try:
        with (folder / FILE).open("rb") as file:
            head = _HEAD.match(file.read(_HEAD_BYTES))
    except OSError:
        return None
    return None if head is None else head[1].decode()


REBUILD = "it was changed or damaged after building; build it again"


def _content(folder: Path, path: Path) -> bytes:
    if folder.name.startswith(".") and ".tmp-" in folder.name:
        raise EngineError(
            "incomplete build (a temporary folder)", where=str(folder), remedy="run `allotrope build` again"
        )
    try:
        if not folder.is_dir():
            raise EngineError("no such engine folder", where=str(folder), remedy="build one with `allotrope build`")
        if not path.exists():
            raise EngineError(_without_manifest(folder), where=str(folder), remedy="run `allotrope build` again")
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise EngineError("not a regular file of a sane size", where=str(path), remedy=REBUILD)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # the second for a NUL in the path
        why = error.strerror if isinstance(error, OSError) else error
        raise EngineError(f"cannot be read: {why}", where=str(path)) from error


def _without_manifest(folder: Path) -> str:
    from allotrope.artifact.layout import FOLDER

    if (folder / FOLDER).exists():
        return f"incomplete build (no {FILE})"
    return f"not an engine (no {FILE})"


def _object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise EngineError("not valid JSON (cut short or damaged)", where=str(path), remedy=REBUILD) from error
    if not isinstance(data, dict):
        raise EngineError("not a JSON object", where=str(path), remedy=REBUILD)
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _manifest(data: dict[str, Any], path: Path) -> Manifest:
    expected = {field.name for field in fields(Manifest)}
    for kind, names in (("unknown", set(data) - expected), ("missing", expected - set(data))):
        if names:
            raise EngineError(f"{kind} field {sorted(names)[0]!r}", where=str(path), remedy=REBUILD)
    for name in ("version", "family", "dtype"):
        _require(isinstance(data[name], str), name, path)
    for name in expected - {"schema", "version", "family", "dtype"}:
        _require(isinstance(data[name], dict), name, path)
    _require(data["tuned"] in ({}, *({"fetch": way} for way in FETCH)), "tuned", path)
    for name in ("tactics", "limits"):
        _require(all(type(value) is int and value > 0 for value in data[name].values()), name, path)
    try:
        plan = Plan.from_json(data["plan"])
        files = {name: FileFacts(**facts) for name, facts in data["files"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise EngineError(f"a field has the wrong form ({error})", where=str(path), remedy=REBUILD) from error
    for name, facts in files.items():
        well = type(facts.bytes) is int and isinstance(facts.digest, str) and isinstance(facts.tensors, dict)
        _require(well and facts.bytes >= 0, f"files.{name}", path)
    return Manifest(**{**data, "plan": plan, "files": files})


def _require(well: bool, name: str, path: Path) -> None:
    if not well:
        raise EngineError(f"field {name!r} has the wrong form", where=str(path), remedy=REBUILD)
