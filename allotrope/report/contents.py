"""What a report holds: an account of each engine and, of several, a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from allotrope.report import figures
from allotrope.report.blocks import BAD, GOOD, Block, Cell, Paragraph, Plot, Section, Table
from allotrope.report.plots import bars
from allotrope.report.sections import ablation, answer, formats, passport, quality, run, speed, time, verdict
from allotrope.report.sections.answer import Answer
from allotrope.report.sections.common import cell, columns, text
from allotrope.report.sources import Subject
from allotrope.report.standing import PROVEN, Standing, judge
from allotrope.report.value import ResultError
from allotrope.units import bytes_text


@dataclass(frozen=True)
class Account:
    """One engine: its standing, its answer and its sections."""

    subject: Subject
    standing: Standing
    answer: Answer
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Comparison:
    """Several engines side by side."""

    title: str
    blocks: tuple[Block, ...]


def account(subject: Subject) -> Account:
    """Everything that is known of one engine. A result of an unknown form costs its own section alone."""
    standing = judge(subject)
    made: list[Section] = []
    for anchor, title, make in _sections(subject, standing):
        try:
            found = make()
        except ResultError as error:
            subject.notes.append(f"{error}")
            found = Section(anchor, title, (Paragraph((f"It cannot be shown: {error}.",), BAD),))
        if found is not None:
            made.append(found)
    made.insert(0, run.asked(subject))  # the last to be made: it lists what was wrong with the others
    return Account(subject, standing, answer.answer(subject, standing), tuple(made))


def _sections(subject: Subject, standing: Standing) -> Iterator[tuple[str, str, Callable[[], Section | None]]]:
    """In the order of the page."""
    yield "environment", "Environment", lambda: run.environment(subject)
    yield "passport", "Engine passport", lambda: passport.section(subject)
    yield "verdict", "Verdict", lambda: verdict.section(subject, standing)
    yield "formats", "What the formats cost", lambda: formats.section(subject)
    yield "speed", "Speed", lambda: speed.section(subject, standing)
    yield "roofline", "Roofline", lambda: time.roofline(subject)
    yield "time", "Where the time goes", lambda: time.account(subject, standing)
    yield "ablation", "What each part buys", lambda: ablation.section(subject, standing)
    yield "timeline", "Timeline", lambda: time.timeline(subject)
    yield "rouge", "Summaries", lambda: quality.rouge(subject)
    yield "eval", "Over a text", lambda: quality.distances(subject)
    yield "outputs", "Answers side by side", lambda: quality.outputs(subject)


def compare(accounts: Sequence[Account]) -> Comparison | None:
    """None for a single engine."""
    if len(accounts) < 2:
        return None
    proven = sum(one.standing.kind == PROVEN for one in accounts)
    title = f"{len(accounts)} engines, {'all' if proven == len(accounts) else proven or 'none'} of them proven"
    rows, shown = [], []
    for one in accounts:
        fast = _headline(one.subject)
        rate = fast.tokens_per_s if fast else None
        size = passport.nbytes(one.subject.engine)
        tone = GOOD if one.standing.kind == PROVEN else BAD
        doubt = one.standing.alarm or (fast.stale if fast else "")
        rows.append(
            (
                text(one.subject.name),
                text(one.standing.word, tone),
                text(passport.formats(one.subject)),
                Cell(figures.number(rate), rate, BAD if doubt and rate is not None else ""),
                cell(figures.times(fast.against_original if fast else None), fast.against_original if fast else None),
                cell(figures.percent(fast.share_of_limit if fast else None), fast.share_of_limit if fast else None),
                cell(bytes_text(size) if size is not None else figures.NONE, size),
            )
        )
        mark = f" ({one.standing.word})" if one.standing.kind != PROVEN else " (of another build)" if doubt else ""
        tip = f"{one.subject.name}: {figures.rate(rate)}{mark}"
        kind = "wrong" if doubt else "ours"
        shown.append(bars.Bar(one.subject.name + mark, rate, tip, kind, reason="not measured"))
    head = columns("engine", "verdict", "formats", "tokens/s", "× original", "of the limit", "on disk", words=3)
    table = Table("Side by side", head, tuple(rows), sortable=True)
    blocks: list[Block] = [
        Paragraph((f"{one.subject.name}: {alarm}",), BAD)
        for one in accounts
        if (alarm := one.standing.alarm or one.answer.cards[1].alarm)
    ]
    blocks.append(table)
    if any(bar.value is not None for bar in shown):
        groups = (bars.Group("", shown),)
        says = "Tokens per second of each engine's first cell; red: not proven to be its model, or not its own."
        draw = lambda width: bars.draw(width, groups, figures.number)  # noqa: E731
        blocks.append(Plot("engines", "Speed of each engine", says, draw, table))
    return Comparison(title, tuple(blocks))


def _headline(subject: Subject) -> speed.Headline | None:
    try:
        return speed.headline(subject)
    except ResultError:
        return None
