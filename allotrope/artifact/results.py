"""What a verb found out about an engine, kept as JSON beside it: which engine, by which command, when."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allotrope.artifact import manifest


def stamp(folder: Path, command: str | None) -> dict[str, str | None]:
    """What goes into every kept result: the command that gives it again, the moment, and the engine's own digest.

    An engine that was built again since has another digest, so whoever reads the result can tell.
    """
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"command": command, "date": date, "engine_digest": manifest.digest(folder)}


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write one result file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
