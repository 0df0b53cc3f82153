"""What several sections need: where a figure comes from, and cells."""

from __future__ import annotations

from allotrope.report import figures
from allotrope.report.blocks import BAD, PLAIN, Cell, Column, Paragraph, Source
from allotrope.report.sources import Subject
from allotrope.report.standing import Standing
from allotrope.report.value import Value

_OTHER = "Found on another build of this engine; run the command again."
_UNKNOWN = "It does not say on which build of this engine it was found; run the command again."


def source(subject: Subject, *parts: Value) -> Source:
    """The command and the date, from the first of `parts` that has them: a file's part before the file."""
    command = next((found for part in parts if (found := part.words("command"))), "")
    date = next((found for part in parts if (found := part.words("date") or _measured_at(part))), "")
    digest = next((found for part in parts if (found := part.words("engine_digest"))), None)
    return Source(command, date, "" if digest and digest == subject.digest else _OTHER if digest else _UNKNOWN)


def alarm(standing: Standing) -> tuple[Paragraph, ...]:
    """What must be said in red where speeds are shown."""
    return (Paragraph((standing.alarm,), BAD),) if standing.alarm else ()


def text(value: str | None, tone: str = PLAIN, *, code: bool = False) -> Cell:
    """A cell of words."""
    return Cell(figures.NONE if value is None else value, None, tone, code)


def cell(shown: str, order: float | None, tone: str = PLAIN) -> Cell:
    """A cell with a figure."""
    return Cell(shown, order, tone)


def columns(*names: str, words: int = 1) -> tuple[Column, ...]:
    """Columns, of which the first `words` hold words and the others figures."""
    return tuple(Column(name, numeric=i >= words) for i, name in enumerate(names))


def _measured_at(part: Value) -> str | None:
    where = part.at("environment")
    return where.words("measured_at") if where is not None and where.is_object else None
