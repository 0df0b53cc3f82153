"""Timings of tactics, kept between builds: one JSON file per fingerprint, one entry per tactic and problem.

A cache and nothing more: a file that cannot be read is as good as none, and one that cannot be written
costs the next build its time, no more.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from allotrope import settings
from allotrope.artifact import digests
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint
from allotrope.ops.contract import Problem
from allotrope.ops.tactic import Tactic

_SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """Seconds per call, and what counts as noise in them."""

    seconds: float
    noise: float


@dataclass
class Timings:
    """The kept timings of one fingerprint. `add` and `get` work in memory, `save` merges into the file."""

    path: Path
    known: dict[str, Measured]
    fresh: dict[str, Measured] = field(default_factory=dict)

    @staticmethod
    def load(device: Device, threads: int) -> Timings:
        """What is kept for this device, these libraries and this many threads."""
        facts = fingerprint(device)
        text = json.dumps([_SCHEMA, facts.hard, facts.soft, threads], sort_keys=True)
        path = settings.cache_dir() / "timings" / f"{digests.of_bytes(text.encode())[:32]}.json"
        return Timings(path, _read(path))

    def get(self, tactic: Tactic, problem: Problem, effort: str) -> Measured | None:
        """The kept timing, if it was taken with as much effort."""
        return self.fresh.get(key := _key(tactic, problem, effort)) or self.known.get(key)

    def add(self, tactic: Tactic, problem: Problem, effort: str, measured: Measured) -> None:
        """Keep a new timing."""
        self.fresh[_key(tactic, problem, effort)] = measured

    def save(self) -> bool:
        """Merge what is new into the file; False where that cannot be."""
        if not self.fresh:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                merged = {**_read(self.path), **self.fresh}
                new = self.path.with_suffix(f".{os.getpid()}")
                rows = {name: [found.seconds, found.noise] for name, found in sorted(merged.items())}
                new.write_text(json.dumps(rows, indent=0), encoding="utf-8")
                new.replace(self.path)
        except OSError:
            return False
        return True


def _key(tactic: Tactic, problem: Problem, effort: str) -> str:
    return f"{tactic.name}@{tactic.version} {problem.key()} {effort}"


def _read(path: Path) -> dict[str, Measured]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Measured(float(row[0]), float(row[1])) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        return {}
