"""What a section of the report is made of, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from allotrope.report.svg import Drawing

BAD, WARN, GOOD, QUIET, PLAIN = "bad", "warn", "good", "quiet", ""


@dataclass(frozen=True)
class Source:
    """Where a figure comes from: the command that gives it again, and when it ran."""

    command: str
    date: str
    stale: str = ""  # why it is not of this engine, if so


@dataclass(frozen=True)
class Code:
    """Text to be typed, or a name from the machine."""

    text: str


Inline: TypeAlias = "str | Code"


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more; the tone says how loud."""

    parts: tuple[Inline, ...]
    tone: str = PLAIN


@dataclass(frozen=True)
class Sentences:
    """Sentences that stand by themselves, one below the other."""

    each: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A line to type."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A table's cell. `order` is what the column is sorted by."""

    text: str
    order: float | None = None
    tone: str = PLAIN
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A table's column; numbers stand to the right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns. The first cell of a row is its head."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    source: Source | None = None
    sortable: bool = False
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A picture, drawn for the width it is given, and the same figures as a table."""

    name: str  # of its file, and of its anchor
    title: str
    says: str  # what is to be seen in it, for those who do not see it too
    draw: Callable[[int], Drawing]
    data: Table
    source: Source | None = None


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: tuple[tuple[str, str | Code], ...]


@dataclass(frozen=True)
class Tile:
    """One of the few figures at the top."""

    label: str
    value: str
    note: str = ""
    tone: str = PLAIN


@dataclass(frozen=True)
class Tiles:
    """The few figures at the top, side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to one question; `differ` is where the texts part, in characters, None if they do not."""

    name: str
    sides: tuple[tuple[str, str], tuple[str, str]]  # (whose, text)
    differ: int | None
    more: tuple[tuple[str, str], ...] = ()  # texts that stay folded: (what it is, text)
    note: str = ""


@dataclass(frozen=True)
class Fold:
    """Details that stay closed until asked for."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = "Paragraph | Sentences | Command | Table | Plot | Facts | Tiles | Pair | Fold"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. `missing` is the command that would make it, if nothing is known."""

    anchor: str
    title: str
    blocks: tuple[Block, ...] = field(default=())
    missing: str | None = None
