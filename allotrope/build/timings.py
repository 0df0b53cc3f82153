"""Timings of tactics, and row classes proven, kept between builds: one JSON file per fingerprint.

A cache and nothing more: a file that cannot be read is as good as none, and one that cannot be written
costs the next build its time, no more.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allotrope import native, settings
from allotrope.artifact import digests
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint
from allotrope.ops.contract import Problem
from allotrope.ops.tactic import Tactic

_SCHEMA = 4


@dataclass(frozen=True)
class Measured:
    """Seconds per call, and what counts as noise in them."""

    seconds: float
    noise: float


@dataclass
class Timings:
    """What is kept under one fingerprint. `add` and `get` work in memory, `save` merges into the file."""

    path: Path
    known: dict[str, Measured] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)

    @staticmethod
    def load(device: Device, threads: int) -> Timings:
        """What is kept for this device, these libraries and this many threads."""
        found = native.find()
        facts = fingerprint(device, found.isa)
        made_of = getattr(found.core, "digest", "")  # other kernels: other timings, and nothing proven
        text = json.dumps([_SCHEMA, facts.hard, facts.soft, threads, made_of], sort_keys=True)
        return _read(settings.cache_dir() / "timings" / f"{digests.of_bytes(text.encode())[:32]}.json")

    def get(self, tactic: Tactic, problem: Problem, effort: str) -> Measured | None:
        """The kept timing, if it was taken with as much effort."""
        return self.known.get(f"{_key([tactic], problem)} {effort}")

    def add(self, tactic: Tactic, problem: Problem, effort: str, measured: Measured) -> None:
        """Keep a new timing."""
        self.known[f"{_key([tactic], problem)} {effort}"] = measured

    def is_proven(self, tactics: Sequence[Tactic], problem: Problem, effort: str) -> bool:
        """Whether these tactics, together, were found to keep their row class here, with as much effort."""
        return f"{_key(tactics, problem)} {effort}" in self.proven

    def add_proven(self, tactics: Sequence[Tactic], problem: Problem, effort: str) -> None:
        """Keep a proof."""
        self.proven.add(f"{_key(tactics, problem)} {effort}")

    def save(self) -> bool:
        """Merge into the file; False where that cannot be."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                other = _read(self.path)
                rows = {name: [found.seconds, found.noise] for name, found in (other.known | self.known).items()}
                new = self.path.with_suffix(f".{os.getpid()}")
                data = {"timings": rows, "proven": sorted(other.proven | self.proven)}
                new.write_text(json.dumps(data, indent=0, sort_keys=True), encoding="utf-8")
                new.replace(self.path)
        except OSError:
            return False
        return True


def _key(tactics: Sequence[Tactic], problem: Problem) -> str:
    names = sorted(f"{tactic.name}@{tactic.version}" for tactic in tactics)
    return f"{' '.join(names)} {problem.key()}"


def _read(path: Path) -> Timings:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {str(name): Measured(float(row[0]), float(row[1])) for name, row in data["timings"].items()}
        return Timings(path, known, {str(key) for key in data["proven"]})
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        return Timings(path)
