"""What each part buys: all of them on, each taken out, each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from allotrope.report import figures
from allotrope.report.blocks import (
    BAD,
    PLAIN,
    QUIET,
    WARN,
    Block,
    Cell,
    Paragraph,
    Plot,
    Section,
    Sentences,
    Source,
    Table,
)
from allotrope.report.plots import waterfall
from allotrope.report.sections.common import alarm, cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.standing import Standing
from allotrope.report.value import Value
from allotrope.units import bytes_text

_DEGRADED, _BARE = "degraded", "reference"


def section(subject: Subject, standing: Standing) -> Section:
    """The waterfall and every row."""
    found = subject.results.get("ablate")
    if found is None:
        path = subject.engine.path("source", "path")
        checkpoint = path.as_text() if path is not None else "CKPT"
        return Section("ablation", "What each part buys", missing=f"allotrope ablate {checkpoint}")
    came = _source(subject, found)
    rows = found.need("rows").items()
    words = found.words("words")
    said = [Paragraph((words,))] if words else []
    if found.flag("interrupted"):
        said.append(Paragraph(("It was interrupted; rows that were not reached have no figures.",), WARN))
    blocks: list[Block] = [*alarm(standing), *said, *_waterfall(rows, _apart(found), came), _table(rows, came)]
    together = []
    for one in found.each("interactions"):
        whole, product, factor = (one.number(key) for key in ("whole", "product", "interaction"))
        told = (
            f"Together {figures.times(whole)}; {one.words('what')} would multiply to {figures.times(product)}: "
            f"a factor of {figures.number(factor)} lies in how they act together."
        )
        together.append(told)
    blocks.append(Sentences(tuple(together)))
    return Section("ablation", "What each part buys", tuple(blocks))


def _source(subject: Subject, found: Value) -> Source:
    """An ablation builds its engines itself, so what must agree is the checkpoint."""
    came = source(subject, found)
    theirs, ours = found.path("environment", "engine", "source"), subject.engine.path("source", "digest")
    same = theirs is not None and ours is not None and theirs.raw == ours.raw
    return replace(
        came, stale="" if same or not came.stale else "Of another checkpoint than this engine is built from."
    )


def _waterfall(rows: Sequence[Value], apart: set[str], came: Source) -> list[Block]:
    """From the bare plan to all parts on, by what taking each part out costs; what is left over is their interplay."""
    timed = {row.need("name").as_text(): row for row in rows if row.number("latency_ms") is not None}
    off = [row for row in timed.values() if row.at("removed") is not None and (not apart or _part(row) in apart)]
    base = off[0].words("base") if off else None
    whole = timed.get(base) if base else None
    if whole is None:
        return []
    end = whole.number("latency_ms") or 0.0
    bare = timed.get(_BARE)
    start = bare.number("latency_ms") if bare is not None else None
    saved = [(row, (row.number("latency_ms") or 0.0) - end) for row in off if row is not bare]
    saved.sort(key=lambda one: -one[1])
    steps = []
    now = end + sum(part for _, part in saved) if start is None else start
    name = bare.need("name").as_text() if bare is not None else "parts taken out"
    if start is not None:
        steps.append(waterfall.Step(name, 0, start, True, f"{name}: {figures.ms(start)}", figures.ms(start)))
    for row, part in saved:
        label = _part(row)
        noise = row.flag("more_than_noise") is False
        kind = "soft" if noise else "ours" if part >= 0 else "wrong"
        told = (
            f"{label}: without it {figures.ms(end + part)}, {figures.ms(abs(part))} {'more' if part >= 0 else 'less'}"
        )
        tip = f"{told}\nno more than noise" if noise else told
        steps.append(waterfall.Step(label, now, now - part, False, tip, f"{figures.signed(-part)} ms", kind))
        now -= part
    if start is not None and abs(now - end) > 0.0:
        told = f"what the parts do together and not alone: {figures.ms(abs(now - end))}"
        steps.append(waterfall.Step("together", now, end, False, told, f"{figures.signed(end - now)} ms"))
    whole_name = whole.need("name").as_text()
    steps.append(waterfall.Step(whole_name, 0, end, True, f"{whole_name}: {figures.ms(end)}", figures.ms(end), "ours"))
    data = Table(
        "Steps of the waterfall",
        columns("part", "from, ms", "to, ms"),
        tuple(
            (text(s.name), cell(figures.number(s.start), s.start), cell(figures.number(s.end), s.end)) for s in steps
        ),
    )
    says = (
        "Latency: what taking each part out of the whole costs. Light: no more than noise; red: a part that slows it."
    )
    draw = lambda width: waterfall.draw(width, steps, figures.ms)  # noqa: E731
    return [Plot("ablation", "From bare to all on", says, draw, data, came)]


def _judged(row: Value) -> Cell:
    """The verdict's word, or why there is none; a leak is what rounding does not explain."""
    verdict, reason = row.words("verdict"), row.words("reason")
    if row.flag("leaks"):
        return text(f"{verdict}: costs more than its format explains", BAD)
    return text(verdict or reason, BAD if verdict == _DEGRADED else QUIET if reason else PLAIN)


def _apart(found: Value) -> set[str]:
    """The parts that share nothing, where the result says which: only their costs can be laid end to end."""
    for one in found.each("interactions"):
        if one.words("what") == "each part off":
            return {name for name, _ in one.need("each").pairs()}
    return set()


def _part(row: Value) -> str:
    return ", ".join(one.as_text() for one in row.each("removed"))


def _table(rows: Sequence[Value], came: Source) -> Table:
    shown = []
    for row in rows:
        name = row.need("name").as_text()
        latency, gain, interval = row.number("latency_ms"), row.number("gain"), row.at("gain_interval")
        between = ""
        if interval is not None and len(interval.items()) == 2:
            low, high = (end.as_number() for end in interval.items())
            between = f"{figures.times(low)} to {figures.times(high)}"
        noise = row.flag("more_than_noise") is False
        memory, build, kl = row.number("memory_bytes"), row.number("build_seconds"), row.number("kl")
        shown.append(
            (
                text(name),
                cell(figures.ms(latency), latency),
                Cell(figures.times(gain), gain, QUIET if noise else PLAIN),
                text("no more than noise" if noise else between or None),
                cell(figures.NONE if memory is None else bytes_text(memory), memory),
                cell(figures.seconds(build), build),
                cell(figures.number(kl), kl),
                _judged(row),
            )
        )
    head = (
        *columns("variant", "latency", "gain", "interval", "memory", "build", "KL"),
        *columns("verdict, or why not"),
    )
    note = "Gain: how many times faster with the part than without, paired by round."
    return Table("Every variant", head, tuple(shown), came, sortable=True, note=note)
