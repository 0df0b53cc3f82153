"""Engines of one checkpoint often hold the same weight files: one that is there already is linked, not kept twice."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from allotrope.artifact import layout
from allotrope.artifact.manifest import Manifest


def share(folder: Path, described: Manifest, others: Iterable[tuple[Path, Manifest]]) -> None:
    """Make weight files that others hold byte for byte links to theirs: no engine's file is ever written again."""
    there = list(others)
    for name, facts in described.files.items():
        if not name.startswith(f"{layout.FOLDER}/"):
            continue
        twin = next((other / name for other, its in there if its.files.get(name) == facts), None)
        if twin is not None:
            with suppress(OSError):  # a file system without links keeps both
                _link(twin, folder / name)


def _link(twin: Path, file: Path) -> None:
    if twin.samefile(file):
        return
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    temporary.hardlink_to(twin)
    temporary.replace(file)
