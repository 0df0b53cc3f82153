"""What was asked, and of which machine with which versions."""

from __future__ import annotations

from allotrope.report import figures
from allotrope.report.blocks import BAD, Block, Code, Column, Facts, Fold, Paragraph, Section, Table
from allotrope.report.sections import passport
from allotrope.report.sections.common import source, text
from allotrope.report.sources import KINDS, Subject
from allotrope.report.value import Value
from allotrope.units import bytes_text


def asked(subject: Subject) -> Section:
    """Every command whose result is shown here, and when it ran."""
    build = passport.built(subject.engine)
    rows = [(text("build"), text(build.command, code=True), text(figures.date(build.date) if build.date else None))]
    for kind in KINDS:
        found = subject.results.get(kind)
        if found is None:
            rows.append((text(kind), text("not run"), text(None)))
            continue
        parts = [found] if found.at("command") is not None else []
        parts += [part for _, part in found.pairs() if part.is_object and part.at("command")] if kind == "bench" else []
        parts += found.each("earlier")  # of other texts
        for part in parts or [found]:
            came = source(subject, part, found)
            told = text(came.command, code=True) if came.command else text("its command was not kept")
            rows.append((text(kind), told, text(figures.date(came.date))))
    table = Table("Commands", (Column("verb"), Column("command"), Column("when")), tuple(rows))
    notes = tuple(Paragraph((note,), BAD) for note in subject.notes)
    return Section("asked", "What was asked", (*notes, table))


def environment(subject: Subject) -> Section:
    """The machine that it was built on, and the versions of what took part."""
    engine = subject.engine
    device = engine.at("device") or Value({}, engine.place)
    rows: list[tuple[str, str | Code]] = [
        ("Device", device.words("name") or "?"),
        ("Kind", device.words("kind") or "?"),
    ]
    for name, key in (("Architecture", "arch"), ("Features", "features")):
        found = device.at(key)
        if found is not None:
            listed = found.raw if isinstance(found.raw, str) else ", ".join(item.as_text() for item in found.items())
            rows.append((name, listed or figures.NONE))
    rows.append(("Cores", figures.count(device.number("cores"))))
    memory = device.number("memory_bytes")
    rows.append(("Memory", bytes_text(memory) if memory is not None else figures.NONE))
    blocks: list[Block] = [Facts(tuple(rows))]
    versions = engine.path("evidence", "versions")
    if versions is not None:
        blocks.append(Fold("Versions", (Facts(tuple((name, value.as_text()) for name, value in versions.pairs())),)))
    other = _elsewhere(subject, device)
    return Section("environment", "Environment", (*other, *blocks))


def _elsewhere(subject: Subject, built: Value) -> tuple[Paragraph, ...]:
    """A figure from another machine than the one that the engine was built on is said to be so."""
    told = []
    for kind, found in subject.results.items():
        for part in [found, *(value for _, value in found.pairs() if value.is_object)]:
            where = part.path("environment", "device")
            if where is not None and where.is_object and where.words("name") not in (None, built.words("name")):
                told.append(Paragraph((f"{kind} ran on another machine: {where.words('name')}.",), BAD))
                break
    return tuple(told)
