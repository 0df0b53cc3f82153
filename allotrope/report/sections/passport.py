"""What the engine is: where it comes from, how it stores and computes, and why so."""

from __future__ import annotations

import math

from allotrope.report import figures
from allotrope.report.blocks import QUIET, Block, Code, Facts, Fold, Paragraph, Section, Source, Table
from allotrope.report.sections.common import cell, columns, text
from allotrope.report.sources import Subject
from allotrope.report.value import Value
from allotrope.units import bytes_text

_USUAL = {  # what the builder does unasked
    "tune": "full",
    "dtype": "auto",
    "method": "auto",
    "plan": "best",
    "device": "auto",
    "executor": "eager",
    "seed": 0,
    "max_batch": 64,
}
_ROWS = 400  # of choices; beyond that nobody reads, and engine.json has all


def section(subject: Subject) -> Section:
    """The passport."""
    engine = subject.engine
    evidence = engine.at("evidence") or Value({}, engine.place)
    blocks: list[Block] = [Facts(_facts(subject, evidence))]
    blocks += _choices(evidence)
    blocks += _fusions(evidence)
    blocks.append(Fold("Digests", (Facts(_digests(subject)),)))
    return Section("passport", "Engine passport", tuple(blocks))


def parameters(engine: Value) -> float | None:
    """How many numbers the checkpoint's weights hold: the sizes that the plan states, counted once each."""
    weights = engine.path("plan", "weights")
    total = 0.0
    for _, weight in weights.pairs() if weights is not None else ():
        for part in weight.each("parts"):
            total += math.prod(size.as_number() for size in part.items()[1].items())
    return total or None


def nbytes(engine: Value) -> float | None:
    """The size of all its files."""
    files = engine.at("files")
    return sum(entry.number("bytes") or 0 for _, entry in files.pairs()) if files is not None else None


def family(engine: Value) -> str:
    """The family's name."""
    return engine.words("family") or "of unknown family"


def formats(subject: Subject) -> str:
    """How its weights are stored, in words."""
    engine = subject.engine
    dtype = engine.words("dtype") or "?"
    total = engine.path("evidence", "quantisation", "total")
    asked = engine.path("options", "weights")
    if total is None:
        return f"{dtype} weights" if asked is None else f"{asked.as_text()} weights, computed in {dtype}"
    bits = total.number("bits_per_weight")
    name = asked.as_text() if asked is not None else "narrow"
    return f"{name} weights at {figures.number(bits)} bits, computed in {dtype}"


def _facts(subject: Subject, evidence: Value) -> tuple[tuple[str, str | Code], ...]:
    engine = subject.engine
    rows: list[tuple[str, str | Code]] = [
        ("Family", family(engine)),
        ("Parameters", figures.big(parameters(engine))),
        ("Weights", formats(subject)),
    ]
    kv = evidence.at("kv")
    if kv is not None:
        held = kv.number("bytes_per_token")
        form = kv.words("format") or ""
        form = f"{engine.words('dtype')}" if form == "compute" else form
        rows.append(("Keys and values", f"{form}, {bytes_text(held or 0)} a token"))
    limits = engine.at("limits")
    if limits is not None:
        batch, length = limits.number("max_batch"), limits.number("max_len")
        rows.append(("Limits", f"{figures.count(length)} tokens, {figures.count(batch)} sequences a step"))
    size = nbytes(engine)
    rows.append(("Size on disk", bytes_text(size) if size is not None else figures.NONE))
    executor = evidence.path("executor", "kind")
    if executor is not None:
        rows.append(("Executor", executor.as_text()))
    variance = evidence.path("batch_variance", "allowed")
    if variance is not None:
        rows.append(("Deterministic", "no: bits may depend on the batch" if variance.raw else "yes, in any batch"))
    method = evidence.path("quantisation", "method")
    if method is not None:
        rows.append(("Rounded by", method.as_text()))
    built = evidence.number("seconds")
    memory = evidence.number("peak_memory_bytes")
    if built is not None:
        peak = f", {bytes_text(memory)} of memory at the peak" if memory is not None else ""
        rows.append(("Built in", f"{figures.seconds(built)}{peak}"))
    rows.append(("Built from", Code(_source_path(engine))))
    rows.append(("Allotrope", engine.words("version") or "?"))
    return tuple(rows)


def _source_path(engine: Value) -> str:
    found = engine.path("source", "path")
    return found.as_text() if found is not None else "?"


def built(engine: Value) -> Source:
    """The command that builds this engine again, as far as engine.json tells."""
    parts = ["allotrope build", _source_path(engine)]
    options = engine.at("options")
    for name, value in options.pairs() if options is not None else ():
        flag = f"--{name.replace('_', '-')}"
        if value.raw is True:
            parts.append(flag)
        elif isinstance(value.raw, (int, float, str)) and value.raw is not False and value.raw != _USUAL.get(name):
            parts.append(f"{flag} {value.raw}")
        elif isinstance(value.raw, list) and value.raw:
            parts.append(f"{flag} {','.join(str(item) for item in value.raw)}")
    date = engine.path("evidence", "date")
    return Source(" ".join(parts), date.as_text() if date is not None else "")


def _choices(evidence: Value) -> list[Block]:
    rows = []
    for choice in evidence.each("choices"):
        paths = choice.each("paths")
        first = paths[0].as_text() if paths else choice.words("op") or "?"
        name = f"{first} and {len(paths) - 1} alike" if len(paths) > 1 else first
        for bucket in choice.each("buckets"):
            up_to = bucket.number("up_to_rows")
            others, refused = bucket.each("runners_up"), bucket.each("refused")
            second = others[0] if others else None
            runner = (
                f"{second.words('tactic')}, {figures.seconds(second.number('seconds'))}" if second else figures.NONE
            )
            why = "; ".join(f"{one.words('tactic')}: {one.words('reason')}" for one in refused) or figures.NONE
            seconds, floor = bucket.number("seconds"), bucket.number("floor_s")
            rows.append(
                (
                    text(name, code=True),
                    text("more" if up_to is None else f"up to {up_to:.0f}"),
                    text(bucket.words("tactic"), code=True),
                    text(runner),
                    text(why),
                    cell(figures.seconds(seconds), seconds),
                    cell(figures.seconds(floor), floor),
                    cell(figures.number(bucket.number("error")), bucket.number("error")),
                )
            )
    if not rows:
        return []
    head = columns("op", "rows", "chosen", "runner-up", "refused, and why", "time", "floor", "error", words=5)
    note = f"The first {_ROWS} of {len(rows)}; engine.json has all." if len(rows) > _ROWS else ""
    table = Table("Tactics chosen", head, tuple(rows[:_ROWS]), sortable=True, note=note)
    told = f"{figures.some(len(rows), 'choice')}: each candidate was held against a reference first, and timed then."
    return [Paragraph((told,)), Fold("Every choice, its runner-up and what was refused", (table,))]


def _fusions(evidence: Value) -> list[Block]:
    found = evidence.at("fusions")
    pairs = tuple((name, value.as_text()) for name, value in found.pairs()) if found is not None else ()
    notes = tuple(Paragraph((note.as_text(),), QUIET) for note in evidence.each("notes"))
    return [Fold("Fusions", (Facts(pairs), *notes))] if pairs else list(notes)


def _digests(subject: Subject) -> tuple[tuple[str, str | Code], ...]:
    engine = subject.engine
    source = engine.path("source", "digest")
    rows: list[tuple[str, str | Code]] = [
        ("engine.json", Code(subject.digest or "does not match its content")),
        ("checkpoint", Code(source.as_text() if source is not None else "?")),
    ]
    files = engine.at("files")
    for name, entry in files.pairs() if files is not None else ():
        rows.append((name, Code(entry.words("digest") or "?")))
    return tuple(rows)
