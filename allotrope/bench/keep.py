"""`bench.json` and the CSV beside it: what was measured, where, with every sample."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from allotrope.artifact import results
from allotrope.artifact.engine import Engine
from allotrope.bench.drive import Times
from allotrope.hw.device import Device
from allotrope.runtime.options import RuntimeOptions

FILE = "bench.json"
REQUESTS = "load.csv"
_COLUMNS = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "started_s",
    "first_s",
    "end_s",
    "preemptions",
    "finish_reason",
)


def environment(device: Device, engine: Engine, options: RuntimeOptions) -> dict[str, Any]:
    """What figures were measured with; without it they mean nothing."""
    return {
        "environment": {"measured_at": results.now(), **results.environment(device, engine)},
        "options": asdict(options),
    }


def samples(times: Sequence[Times]) -> list[dict[str, Any]]:
    """Each request's clock, in plain values."""
    return [
        {
            "arrival_s": one.job.arrival,
            "prompt_tokens": len(one.job.prompt),
            "priority": one.job.priority,
            "started_s": one.started,
            "tokens_s": [round(moment, 6) for moment in one.tokens],
            "preemptions": one.preemptions,
            "finish_reason": one.finish_reason,
        }
        for one in times
    ]


def keep(folder: Path, part: str, found: Mapping[str, Any]) -> Path:
    """Put `found` under the name `part` into the folder's bench.json, whole or not at all; other parts stay."""
    path = folder / FILE
    results.write(path, {**_kept(path), part: found})
    return path


def keep_all(folder: Path, found: Mapping[str, Any]) -> Path:
    """Put the grid's results into the folder's bench.json; a load's, which stand under a name of their own, stay."""
    path = folder / FILE
    load = {name: value for name, value in _kept(path).items() if name == "load"}
    results.write(path, {**found, **load})
    return path


def keep_csv(folder: Path, times: Sequence[Times]) -> Path:
    """One line per request, for a spreadsheet."""
    path = folder / REQUESTS
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for one in times:
            first, last = (one.tokens[0], one.tokens[-1]) if one.tokens else ("", "")
            job, how = one.job, (one.preemptions, one.finish_reason)
            writer.writerow((job.arrival, len(job.prompt), len(one.tokens), one.started, first, last, *how))
    return path


def _kept(path: Path) -> dict[str, Any]:
    """What an earlier run left; a damaged file is replaced."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
