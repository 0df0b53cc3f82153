"""Blocks as HTML. Whatever comes from a file goes through `markup`; ids are made here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable

from allotrope.report.blocks import (
    BAD,
    Block,
    Cell,
    Code,
    Column,
    Command,
    Facts,
    Fold,
    Inline,
    Pair,
    Paragraph,
    Plot,
    Section,
    Sentences,
    Source,
    Table,
    Tile,
    Tiles,
)
from allotrope.report.escape import markup
from allotrope.report.figures import date

_MANY = 9  # columns that are set smaller
_SHORT = 24  # characters of a row's head that stay on one line
WIDE, NARROW = 736, 330  # the widths that a plot is drawn for: a desk's and a phone's


class Names:
    """Ids, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def new(self, wanted: str) -> str:
        """An id like `wanted` that nothing else has."""
        plain = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-") or "x"
        found, number = plain, 2
        while found in self._given:
            found, number = f"{plain}-{number}", number + 1
        self._given.add(found)
        return found


class Renderer:
    """Turns sections into HTML; `level` is the heading that a section gets."""

    def __init__(self, names: Names, level: int, prefix: str = "") -> None:
        self._names, self._level, self._prefix = names, level, prefix

    def section(self, section: Section) -> tuple[str, str]:
        """The section, and its id."""
        anchor = self._names.new(f"{self._prefix}{section.anchor}")
        head = f'<h{self._level} id="{anchor}">{markup(section.title)}</h{self._level}>'
        body = self._missing(section.missing) if section.missing else self.blocks(section.blocks)
        return f'<section aria-labelledby="{anchor}">{head}{body}</section>', anchor

    def blocks(self, blocks: Iterable[Block]) -> str:
        """Blocks, one after the other."""
        return "".join(self._block(block) for block in blocks)

    def _block(self, block: Block) -> str:  # noqa: PLR0911 one way out per kind
        match block:
            case Paragraph(parts, tone):
                mark = ' role="note"' if tone == BAD else ""
                return f'<p class="{tone or "text"}"{mark}>{_inline(parts)}</p>'
            case Sentences(each):
                return f"<ul>{''.join(f'<li>{markup(one)}</li>' for one in each)}</ul>"
            case Command(text):
                return f'<pre class="command"><code>{markup(text)}</code></pre>'
            case Facts(pairs):
                rows = (f"<div><dt>{markup(name)}</dt><dd>{_inline((value,))}</dd></div>" for name, value in pairs)
                return f'<dl class="facts">{"".join(rows)}</dl>'
            case Tiles(tiles):
                return f'<dl class="tiles">{"".join(_tile(tile) for tile in tiles)}</dl>'
            case Table():
                return self._table(block)
            case Plot():
                return self._plot(block)
            case Pair():
                return _pair(block)
            case Fold(title, inside):
                return f"<details><summary>{markup(title)}</summary>{self.blocks(inside)}</details>"

    def _missing(self, command: str) -> str:
        return f'<p class="quiet">Not measured. This makes it: <code>{markup(command)}</code></p>'

    def _table(self, table: Table) -> str:
        note = f'<p class="quiet">{markup(table.note)}</p>' if table.note else ""
        return (
            f'<figure class="table"><figcaption><p class="title">{markup(table.title)}</p></figcaption>'
            f"{self._rows(table)}{note}{_source(table.source)}</figure>"
        )

    def _rows(self, table: Table, name: str = "") -> str:
        sort = " data-sort" if table.sortable else ""
        sort += ' class="many"' if len(table.columns) > _MANY else ""
        head = "".join(_head(column) for column in table.columns)
        body = "".join(f"<tr>{_row(row, table.columns)}</tr>" for row in table.rows)
        name = markup(name or table.title)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
            f"<table{sort}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _plot(self, plot: Plot) -> str:
        title = self._names.new(f"{self._prefix}plot-{plot.name}")
        data = f"{plot.title}: the figures"
        drawn = plot.draw(WIDE).inline("wide") + plot.draw(NARROW).inline("narrow")
        return (
            f'<figure class="plot" aria-labelledby="{title}"><figcaption><p class="title" id="{title}">'
            f'{markup(plot.title)}</p><p class="says">{markup(plot.says)}</p></figcaption>'
            f'<div class="drawn">{drawn}</div>'
            f"<details><summary>The figures as a table</summary>{self._rows(plot.data, data)}</details>"
            f"{_source(plot.source)}</figure>"
        )


def _tile(tile: Tile) -> str:
    value = f"<strong>{markup(tile.value)}</strong><span>{markup(tile.note)}</span>"
    return f'<div class="tile {tile.tone}"><dt>{markup(tile.label)}</dt><dd>{value}</dd></div>'


def _head(column: Column) -> str:
    kind = ' class="number"' if column.numeric else ""
    return f'<th scope="col"{kind}>{markup(column.name)}</th>'


def _row(row: tuple[Cell, ...], columns: tuple[Column, ...]) -> str:
    made = []
    for i, (cell, column) in enumerate(zip(row, columns, strict=True)):
        short = "short" if len(cell.text) <= _SHORT else "long code" if cell.code else "long"
        kinds = " ".join(kind for kind in ("number" if column.numeric else "", cell.tone, short) if kind)
        marks = f' class="{kinds}"' if kinds else ""
        marks += f' data-order="{cell.order!r}"' if cell.order is not None else ""
        text = f"<code>{markup(cell.text)}</code>" if cell.code else markup(cell.text)
        made.append(f'<th scope="row"{marks}>{text}</th>' if i == 0 else f"<td{marks}>{text}</td>")
    return "".join(made)


def _inline(parts: tuple[Inline, ...]) -> str:
    return "".join(f"<code>{markup(part.text)}</code>" if isinstance(part, Code) else markup(part) for part in parts)


def _source(source: Source | None) -> str:
    if source is None:
        return ""
    stale = f'<p class="bad">{markup(source.stale)}</p>' if source.stale else ""
    command = f"<code>{markup(source.command)}</code> " if source.command else "a command that was not kept, "
    return f'{stale}<p class="source">{command}<span>{markup(date(source.date))}</span></p>'


def _pair(pair: Pair) -> str:
    sides = "".join(
        f'<div><p class="whose">{markup(whose)}</p><pre dir="auto">{_marked(text, pair.differ)}</pre></div>'
        for whose, text in pair.sides
    )
    note = f'<p class="quiet">{markup(pair.note)}</p>' if pair.note else ""
    more = "".join(
        f'<details><summary>{markup(what)}</summary><pre dir="auto">{markup(text)}</pre></details>'
        for what, text in pair.more
    )
    head = f'<p class="title"><bdi>{markup(_short(pair.name))}</bdi></p>'
    return f'<div class="pair">{head}<div class="sides">{sides}</div>{note}{more}</div>'


def _marked(text: str, differ: int | None) -> str:
    """The text with what follows the first difference marked."""
    if differ is None:
        return markup(text)
    rest = markup(text[differ:]) or "(ends here)"
    return f"{markup(text[:differ])}<mark>{rest}</mark>"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:34]} … {line[-34:]}"
