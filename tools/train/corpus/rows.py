"""JSON lines, xz-compressed: the format of every file in the work folder."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_PRESET = 6  # 9 is 2 % smaller and takes three times the memory to read


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Write the rows and return how many; the file appears only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(path.name + ".partial"), 0
    with lzma.open(partial, "wt", encoding="utf-8", newline="\n", preset=_PRESET) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows, one at a time."""
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
