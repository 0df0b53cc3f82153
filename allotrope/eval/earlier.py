"""What `eval.json` held before: a run over another text, or with other settings, is not lost to the newest one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "earlier"
_MOST = 20  # runs; the report shows them all
_ASKED = {
    "text": ("file", "read", "window", "stride"),
    "code": ("file", "problems", "max_output", "executed"),
}


def earlier(path: Path, shown: Mapping[str, Any], digest: str | None) -> list[dict[str, Any]]:
    """The runs that a kept file holds of this very engine, newest first, without those that `shown` repeats."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or one that nobody can read
        return []
    if not isinstance(kept, dict):
        return []
    before = kept.pop(KEY, None)
    runs = [kept, *(before if isinstance(before, list) else ())]
    own = [run for run in runs if isinstance(run, dict) and run.get("engine_digest") == digest]
    return [run for run in own if asked(run) != asked(shown)][:_MOST]


def asked(run: Mapping[str, Any]) -> list[Any]:
    """What a run was of: the same for runs of which the newer replaces the older."""
    found: list[Any] = [run.get("original")]
    for part, names in _ASKED.items():
        described = run.get(part)
        found.append([described.get(name) for name in names] if isinstance(described, dict) else None)
    return found
