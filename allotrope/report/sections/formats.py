"""What narrow formats cost: each weight's error, and which module the quality went into."""

from __future__ import annotations

from allotrope.report import figures
from allotrope.report.blocks import Block, Code, Command, Facts, Fold, Paragraph, Plot, Section, Table
from allotrope.report.plots import bars
from allotrope.report.sections import passport
from allotrope.report.sections.common import cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.value import Value
from allotrope.units import bytes_text

_BARS = 16
_ROWS = 1000


def section(subject: Subject) -> Section | None:
    """None for an engine in which nothing is narrow."""
    narrow = subject.engine.path("evidence", "quantisation")
    if narrow is None or not narrow.raw:
        return None
    blocks: list[Block] = [*_total(narrow), *_weights(subject, narrow), *_exceptions(narrow)]
    verify = subject.results.get("verify")
    found = verify.at("attribution") if verify is not None else None
    if found is not None and verify is not None:
        blocks += _attribution(subject, verify, found)
    else:
        blocks.append(
            Paragraph(
                (
                    "Which module costs what is not measured. This makes it: ",
                    Code(f"allotrope verify {subject.folder} --attribute"),
                )
            )
        )
    return Section("formats", "What the formats cost", tuple(blocks))


def _total(narrow: Value) -> list[Block]:
    total = narrow.at("total")
    if total is None:
        return []
    bits, error, size = (total.number(key) for key in ("bits_per_weight", "relative", "nbytes"))
    return [
        Facts(
            (
                ("Weights", figures.big(total.number("weights"))),
                ("Stored in", f"{bytes_text(size or 0)}, {figures.number(bits)} bits each"),
                ("Error", f"{figures.percent(error)} of the weights' norm"),
                ("Signal to noise", f"{figures.number(total.number('sqnr_db'))} dB"),
            )
        )
    ]


def _weights(subject: Subject, narrow: Value) -> list[Block]:
    found = sorted(narrow.each("weights"), key=lambda one: -(one.number("relative") or 0))
    if not found:
        return []
    shown = []
    rows = []
    for one in found:
        path, error = one.need("path").as_text(), one.number("relative")
        tip = f"{path}: {figures.percent(error)}, {one.words('format')}"
        shown.append(bars.Bar(path, error, tip, "ours"))
        rows.append(
            (
                text(path, code=True),
                text(one.words("format")),
                cell(figures.percent(error), error),
                cell(figures.number(one.number("sqnr_db")), one.number("sqnr_db")),
                cell(figures.number(one.number("max_abs")), one.number("max_abs")),
                cell(bytes_text(one.number("nbytes") or 0), one.number("nbytes")),
            )
        )
    head = columns("weight", "format", "error", "SQNR, dB", "largest error", "bytes", words=2)
    note = f"The worst {_ROWS} of {len(rows)}." if len(rows) > _ROWS else ""
    data = Table("Every weight's error", head, tuple(rows[:_ROWS]), sortable=True, note=note)
    says = f"The {min(_BARS, len(shown))} worst of {len(shown)} weights: the norm of the error over the weight's."
    group = (bars.Group("", shown[:_BARS]),)
    came = passport.built(subject.engine)
    return [
        Plot(
            "weights", "Error of each weight", says, lambda width: bars.draw(width, group, figures.percent), data, came
        )
    ]


def _exceptions(narrow: Value) -> list[Block]:
    found = narrow.at("exceptions")
    pairs = found.pairs() if found is not None and found.is_object else []
    if not pairs:
        return []
    listed = tuple((name, str(value.raw)) for name, value in pairs)
    return [Fold(f"{figures.some(len(pairs), 'exception')} from the policy", (Facts(listed),))]


def _attribution(subject: Subject, verify: Value, found: Value) -> list[Block]:
    whole, positions = found.number("whole"), found.number("positions")
    rows, shown = [], []
    parts = found.each("modules")
    for part in parts:
        name, alone, share = part.need("module").as_text(), part.number("alone"), part.number("share")
        tip = f"{name} ({part.words('format')}): {figures.number(alone)} nats alone, {figures.percent(share)}"
        shown.append(bars.Bar(name, alone, tip, "ours"))
        rows.append(
            (
                text(name, code=True),
                text(part.words("format")),
                cell(figures.number(alone), alone),
                cell(figures.percent(share), share),
                cell(figures.number(part.number("saved")), part.number("saved")),
                cell(bytes_text(part.number("extra_bytes") or 0), part.number("extra_bytes")),
            )
        )
    together = found.number("sum_over_whole")
    says = (
        f"KL divergence that each module causes alone, of {figures.number(whole)} nats in all, over "
        f"{figures.count(positions)} tokens; alone they add up to {figures.percent(together)} of it."
    )
    head = columns("module", "format", "KL alone", "share", "saved if wide", "extra bytes", words=2)
    data = Table("Every module's share", head, tuple(rows[:_ROWS]), sortable=True)
    group = (bars.Group("", shown[:_BARS]),)
    blocks: list[Block] = [
        Plot(
            "attribution",
            "Where the quality went",
            says,
            lambda width: bars.draw(width, group, figures.number),
            data,
            source(subject, verify),
        )
    ]
    widen = found.each("widen")
    if widen:
        blocks.append(Paragraph((f"Widening {widen[0].as_text()} buys back the most for its bytes:",)))
        blocks.append(Command(f"allotrope build … --keep '{widen[0].as_text()}=wide'"))
    return blocks
