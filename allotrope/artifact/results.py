"""What a verb found out about an engine, kept as JSON beside it: which engine, by which command, when, with what.

`allotrope/schemas/VERB.json` says what a verb shows, and `allotrope/schemas/kept.json` what is kept besides.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from allotrope.artifact import manifest
from allotrope.artifact.engine import Engine
from allotrope.errors import UsageError
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint, versions
from allotrope.native import identity


def environment(device: Device, engine: Engine) -> dict[str, Any]:
    """What figures were found with; without it they mean nothing."""
    facts, described = fingerprint(device), engine.manifest
    return {
        "device": asdict(device),
        "versions": versions(),
        "fingerprint": {"hard": facts.hard, "soft": facts.soft},
        "core": identity() if described.evidence.get("executor", {}).get("kind") == "native" else None,
        "engine": {"family": described.family, "dtype": described.dtype, "source": described.source["digest"]},
    }


def now() -> str:
    """The moment in UTC, as every result names it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def stamp(folder: Path, command: str | None) -> dict[str, str | None]:
    """What goes into every kept result: the command that gives it again, the moment, and the engine's own digest.

    An engine that was built again since has another digest, so whoever reads the result can tell.
    """
    return {"command": command, "date": now(), "engine_digest": manifest.digest(folder)}


def keep(
    folder: Path, verb: str, shown: Mapping[str, Any], engine: Engine, device: Device, command: str, samples: Any
) -> Path:
    """Write `VERB.json`: what was shown, what it was found with, and the raw figures behind it."""
    path = folder / f"{verb}.json"
    found_with = {"environment": environment(device, engine), **stamp(engine.path, command)}
    write(path, {**shown, **found_with, "samples": samples})
    return path


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write one result file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(strict(values), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def make_folder(folder: Path) -> None:
    """See to it that figures can be kept before an hour goes into finding them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from error


def strict(value: Any) -> Any:
    """`value` for strict JSON, where NaN and infinity are null."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
