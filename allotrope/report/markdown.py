"""Blocks as Markdown, for a repository: the same sections in the same order, pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from allotrope.report.blocks import (
    BAD,
    Block,
    Code,
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
    Tiles,
)
from allotrope.report.contents import Account, Comparison
from allotrope.report.escape import fenced, markdown
from allotrope.report.figures import date

_ROWS = 60  # of a table; the page has all, and a repository's reader scrolls
Place = Callable[[Plot], str]  # where a picture lies, beside the text


def text(accounts: Sequence[Account], comparison: Comparison | None, place: Callable[[int, Plot], str]) -> str:
    """The whole text; `place` keeps a picture of the engine with this number and says where."""
    parts: list[str] = []
    level = 1 if comparison is None else 2
    if comparison is not None:
        parts += [f"# {markdown(comparison.title)}", *_blocks(comparison.blocks, partial(place, 0))]
    for number, account in enumerate(accounts, start=1):
        parts += _account(account, level, partial(place, number))
    return "\n\n".join(part for part in parts if part) + "\n"


def _account(account: Account, level: int, place: Place) -> Iterable[str]:
    found = account.answer
    yield f"{'#' * level} {markdown(found.headline)}"
    yield markdown(found.about)
    for card in found.cards:
        if card.alarm:
            yield _loud(markdown(card.alarm))
        lines = " ".join(markdown(line) for line in card.lines)
        yield f"**{markdown(card.question)}** {markdown(card.answer)}. {lines}"
    yield _tiles(found.tiles)
    for section in account.sections:
        yield from _section(section, level + 1, place)


def _section(section: Section, level: int, place: Place) -> Iterable[str]:
    yield f"{'#' * level} {markdown(section.title)}"
    if section.missing:
        yield f"Not measured. This makes it: {_code(section.missing)}"
    yield from _blocks(section.blocks, place)


def _blocks(blocks: Iterable[Block], place: Place) -> Iterable[str]:
    for block in blocks:
        yield from _block(block, place)


def _block(block: Block, place: Place) -> Iterable[str]:
    match block:
        case Paragraph(parts, tone):
            told = "".join(_inline(part) for part in parts)
            yield _loud(told) if tone == BAD else told
        case Sentences(each):
            yield "\n".join(f"- {markdown(one)}" for one in each)
        case Command(line):
            yield fenced(line)
        case Facts(pairs):
            yield "\n".join(f"- {markdown(name)}: {_inline(value)}" for name, value in pairs)
        case Tiles():
            yield _tiles(block)
        case Table():
            yield f"**{markdown(block.title)}**"
            yield _rows(block)
            yield from (markdown(block.note), _source(block.source))
        case Plot():
            yield f"**{markdown(block.title)}** {markdown(block.says)}"
            yield f"![{markdown(block.title)}]({place(block)})"
            yield from _folded("The figures as a table", (_rows(block.data),))
            yield _source(block.source)
        case Pair(name, sides, _, more, note):
            yield f"**{markdown(name)}**"
            for whose, said in sides:
                yield from (markdown(whose), fenced(said))
            yield markdown(note)
            for what, said in more:
                yield from _folded(what, (fenced(said),))
        case Fold(title, inside):
            yield from _folded(title, _blocks(inside, place))


def _folded(title: str, parts: Iterable[str]) -> Iterable[str]:
    yield f"<details><summary>{markdown(title)}</summary>"
    yield from parts
    yield "</details>"


def _tiles(tiles: Tiles) -> str:
    return " · ".join(f"{markdown(tile.label)}: **{markdown(tile.value)}**" for tile in tiles.tiles)


def _rows(table: Table) -> str:
    head = "| " + " | ".join(markdown(column.name) or " " for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|"
    rows = [
        "| " + " | ".join(_code(cell.text) if cell.code else markdown(cell.text) for cell in row) + " |"
        for row in table.rows[:_ROWS]
    ]
    cut = [f"\nThe first {_ROWS} of {len(table.rows)} rows."] if len(table.rows) > _ROWS else []
    return "\n".join([head, rule, *rows, *cut])


def _source(source: Source | None) -> str:
    if source is None:
        return ""
    stale = f"{_loud(markdown(source.stale))}\n\n" if source.stale else ""
    command = _code(source.command) if source.command else "a command that was not kept"
    return f"{stale}<sub>{command} · {markdown(date(source.date))}</sub>"


def _loud(told: str) -> str:
    """Red where Markdown is shown with colours, a quotation elsewhere."""
    return f"> [!CAUTION]\n> {told}"


def _inline(part: Inline) -> str:
    return _code(part.text) if isinstance(part, Code) else markdown(part)


def _code(told: str) -> str:
    """A span of code in a line or a cell: no text in it can end either."""
    plain = re.sub(r"\s+", " ", told).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain.strip() else ""
