"""Who else took part in a bench, whether they said the same, and who did not come and why."""

from __future__ import annotations

from collections.abc import Sequence

from allotrope.report.blocks import BAD, PLAIN, QUIET, WARN, Block, Cell, Source, Table
from allotrope.report.sections.common import columns, text
from allotrope.report.value import Value


def different(peer: Value) -> bool:
    """Whether its answers were not ours: fast and wrong does not count."""
    found = peer.at("different")
    return found is not None and bool(found.raw)


def form(value: Value) -> str:
    """A peer's format as one word: of its weights."""
    found = value.at("format")
    if found is None or not found.is_object:
        return found.as_text() if found is not None else ""
    return found.words("weights") or ""


def table(found: Value, cells: Sequence[Value], came: Source) -> list[Block]:
    """A row for each, over all cells."""
    seen: dict[str, list[Value]] = {}
    for one in cells:
        peers = one.at("peers")
        for name, value in peers.pairs() if peers is not None else ():
            seen.setdefault(name, []).append(value)
    facts = found.at("peers")
    for name, value in facts.pairs() if facts is not None else ():
        if value.words("reason_absent"):
            seen.setdefault(name, [value])
    rows = [_row(name, values) for name, values in seen.items()]
    head = columns("peer", "version", "format", "result", words=4)
    return [Table("The peers", head, tuple(rows), came)] if rows else []


def _row(name: str, values: Sequence[Value]) -> tuple[Cell, ...]:
    there = [value for value in values if not value.words("reason_absent")]
    one = (there or list(values))[0]
    told, tone = _said(there, len(values))
    reasons = dict.fromkeys(reason for value in values if (reason := value.words("reason_absent")))
    if not there:
        told, tone = "; ".join(reasons), QUIET
    elif reasons:
        told += f"; absent from {len(values) - len(there)} of {len(values)} cells: {'; '.join(reasons)}"
    return text(name, code=True), text(one.words("version")), text(form(one) or None), text(told, tone)


def _said(there: Sequence[Value], cells: int) -> tuple[str, str]:
    """What its answers were beside ours. One cell of other words is not made up for by the rest."""
    wrong = sum(map(different, there))
    if wrong:
        where = "" if wrong == cells else f" in {wrong} of {cells} cells"
        return f"says something else{where}: its speed does not count", BAD
    compared = [value for one in there if (value := one.at("agreement")) is not None]
    texts, equal = (sum(int(one.number(key) or 0) for one in compared) for key in ("texts", "equal"))
    if not texts:
        return "took part; what it said was not compared", WARN
    if equal == texts:
        return "took part, and said the same, token by token", PLAIN
    rest = "the others part where its precision explains it"
    return f"took part; {equal} of {texts} texts are the same, {rest}", PLAIN
