"""Where the time goes: under the roofs of the machine, op by op with the host's part, and along a line of time."""

from __future__ import annotations

from collections.abc import Sequence

from allotrope.report import figures
from allotrope.report.blocks import PLAIN, QUIET, Block, Cell, Fold, Paragraph, Plot, Section, Sentences, Source, Table
from allotrope.report.plots import bars, lanes
from allotrope.report.plots import roofline as roofs
from allotrope.report.sections.common import alarm, cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.standing import Standing
from allotrope.report.value import Value

_KINDS = ("accounted", "kinds")
_STEPS = 40  # of a timeline; more would be a bar code
_ROWS = 60


def roofline(subject: Subject) -> Section:
    """Each op's work per byte and its speed, under what the machine was measured to do."""
    found = subject.results.get("explain")
    if found is None:
        return Section("roofline", "Roofline", missing=f"allotrope explain {subject.folder}")
    ceilings = found.at("ceilings")
    read = ceilings.number("read_bytes_per_s") if ceilings is not None else None
    if ceilings is None or not read:
        told = (
            "The machine's ceilings are not known to this result; run allotrope doctor --measure, then explain again."
        )
        return Section("roofline", "Roofline", (Paragraph((told,)),))
    cached = ceilings.number("step_read_bytes_per_s")
    slopes = [("reading memory", read)] + (
        [("the cache that holds a step", cached)] if cached and cached > read else []
    )
    under = roofs.Roofs(slopes, ceilings.number("flops_per_s"))
    spots, rows = [], []
    for name, one in found.need("accounted").pairs():
        intensity, achieved = one.number("flops_per_byte"), one.number("flops_per_s")
        share = one.number("share") or 0.0
        if not intensity or not achieved:
            continue
        reached = one.number("share_of_limit")
        tip = (
            f"{name}: {figures.flops(achieved)} at {figures.number(intensity)} flops a byte\n"
            f"{figures.percent(share)} of the time, {figures.percent(reached)} of its limit"
        )
        spots.append(roofs.Spot(name, intensity, achieved, share, tip))
        rows.append(
            (
                text(name, code=True),
                cell(figures.number(intensity), intensity),
                cell(figures.flops(achieved), achieved),
                cell(figures.percent(reached), reached),
                cell(figures.percent(share), share),
            )
        )
    if not spots:
        return Section("roofline", "Roofline", (Paragraph(("No op of this result says how much it computed.",)),))
    head = columns("op", "flops per byte", "achieved", "of its limit", "of the time")
    data = Table("Ops under the roofs", head, tuple(rows), sortable=True)
    says = (
        "Each dot is an op; the larger, the more of the time it takes. On the slope it waits for memory, under the "
        "level for arithmetic; the distance to the line is what is left to gain."
    )
    plot = Plot(
        "roofline",
        "How far from the machine's limits",
        says,
        lambda width: roofs.draw(width, spots, under),
        data,
        source(subject, found),
    )
    return Section("roofline", "Roofline", (plot,))


def account(subject: Subject, standing: Standing) -> Section:
    """The whole of an answer's time, and what an explanation predicts."""
    found = subject.results.get("explain")
    if found is None:
        return Section("time", "Where the time goes", missing=f"allotrope explain {subject.folder}")
    came = source(subject, found)
    blocks: list[Block] = [*alarm(standing), Sentences(tuple(word.as_text() for word in found.each("words")))]
    blocks.append(_accounted(found, came))
    blocks += _whys(found, came)
    blocks += _predictions(found, came)
    return Section("time", "Where the time goes", tuple(blocks))


def _accounted(found: Value, came: Source) -> Plot:
    total = found.number("total_ms") or 0.0
    shown: list[bars.Bar] = []
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.need("accounted").pairs():
        took, floor, share = one.number("ms"), one.number("floor_ms"), one.number("share")
        used = ", ".join(dict.fromkeys(tactic.words("tactic") or "?" for tactic in one.each("tactics")))
        limit = one.number("share_of_limit")
        told = f"{name}: {figures.ms(took)}, {figures.percent(share)} of the time"
        tip = f"{told}\nleast possible {figures.ms(floor)}\n{used}"
        shown.append(bars.Bar(name, took, tip, "soft", inner=floor))
        rows.append(
            (
                text(name, code=True),
                cell(figures.count(one.number("calls")), one.number("calls")),
                cell(figures.ms(took), took),
                cell(figures.percent(share), share),
                cell(figures.ms(floor), floor),
                cell(figures.percent(limit), limit),
                text(used or None, code=True),
            )
        )
    gaps = found.at("gaps_ms")
    for name, value in gaps.pairs() if gaps is not None else ():
        took = value.as_number()
        share = took / total if total else None
        words = "not accounted for" if name == "unaccounted" else f"host: {name}"
        shown.append(bars.Bar(words, took, f"{words}: {figures.ms(took)}, {figures.percent(share)} of the time"))
        rest = (text(None), cell(figures.ms(took), took), cell(figures.percent(share), share))
        rows.append((text(words, QUIET), *rest, text(None), text(None), text("the host")))
    shown.sort(key=lambda bar: -(bar.value or 0.0))
    asked = found.at("asked")
    what = ""
    if asked is not None:
        batch, into, out = (figures.count(asked.number(key)) for key in ("batch", "input", "output"))
        what = f" for a batch of {batch}, {into} tokens in and {out} out"
    lost = found.number("unaccounted_share")
    says = f"{figures.ms(total)} in all{what}. Dark: the least that the machine could take; light: what it took."
    if lost is not None:
        says += f" {figures.percent(1 - lost)} of the time is accounted for."
    head = (*columns("op", "calls", "time", "share", "floor", "of its limit"), *columns("tactic"))
    data = Table("Time by op", head, tuple(rows), sortable=True)
    groups = (bars.Group("", [bar for bar in shown if bar.value]),)
    return Plot("time", "By op", says, lambda width: bars.draw(width, groups, figures.ms), data, came)


def _whys(found: Value, came: Source) -> list[Block]:
    """Why each kind of call runs on its tactic."""
    rows = []
    kinds = found.at("kinds")
    for name, one in kinds.pairs() if kinds is not None else ():
        for tactic in one.each("tactics"):
            rows.append(
                (
                    text(name, code=True),
                    text(tactic.words("phase")),
                    text(tactic.words("tactic"), code=True),
                    text(tactic.words("why")),
                )
            )
    if not rows:
        return []
    table = Table("Why this tactic", columns("call", "while", "tactic", "because", words=4), tuple(rows[:_ROWS]), came)
    return [Fold("Why each call runs on its tactic", (table,))]


def _predictions(found: Value, came: Source) -> list[Block]:
    """What changes would do, and how an earlier prediction of what this engine is has come out."""
    blocks: list[Block] = []
    rows = []
    for one in found.each("predicted"):
        keys = ("total_ms", "t_ctx_ms", "t_gen_ms", "saved_step_ms")
        shown = (cell(figures.ms(one.number(key)), one.number(key)) for key in keys)
        rows.append((text(one.words("change")), *shown, text(one.words("words"))))
    if rows:
        head = (*columns("change", "whole answer", "prefill", "decode", "saved a step"), *columns("in words"))
        blocks.append(Table("What a change would do", head, tuple(rows), came, note="Predicted, not measured."))
    scored = found.at("scored")
    if scored is not None:
        rows = []
        for name, one in scored.need("rows").pairs():
            predicted, measured, error = (one.number(key) for key in ("predicted", "measured", "error"))
            shown = (cell(figures.number(value), value) for value in (predicted, measured))
            off = "exact" if error == 0 else f"{figures.signed_percent(error)}"
            rows.append((text(name.replace("_ms", ", ms").replace("_", " ")), *shown, cell(off, error)))
        title = f"A prediction, scored: {scored.words('change') or 'this engine'}"
        note = f"Predicted by {scored.words('command') or 'a command that was not kept'}, before the change was made."
        head = columns("figure", "predicted", "measured", "predicted is off by")
        blocks.append(Table(title, head, tuple(rows), came, note=note))
    return blocks


def timeline(subject: Subject) -> Section:
    """The steps of one run along the time."""
    found = subject.results.get("explain")
    if found is None:
        return Section("timeline", "Timeline", missing=f"allotrope explain {subject.folder} --trace trace.json")
    came = source(subject, found)
    runs = found.at("samples")
    timed = runs.each("timed") if runs is not None and runs.is_object else []
    if not timed or not timed[0].each("steps"):
        return Section("timeline", "Timeline", (Paragraph(("No step was kept.",)),))
    plot = _timeline(timed[len(timed) // 2].each("steps"), came)
    trace = found.words("trace")
    told = f"Every call, the host's work and each request are in {trace}, which ui.perfetto.dev opens." if trace else ""
    blocks: tuple[Block, ...] = (plot, Paragraph((told,), PLAIN)) if told else (plot,)
    return Section("timeline", "Timeline", blocks)


def _timeline(steps: Sequence[Value], came: Source) -> Plot:
    shown = steps[:_STEPS]
    device, host, rows, now = [], [], [], 0.0
    for place, step in enumerate(shown, start=1):
        idle, busy = ((step.number(key) or 0.0) * 1e3 for key in ("idle_s", "busy_s"))
        kind, tokens = step.words("kind") or "step", step.number("tokens")
        name = "prompt" if kind == "context" else kind
        if idle:
            host.append(lanes.Span("", now, now + idle, f"the host before step {place}: {figures.ms(idle)}"))
            now += idle
        tip = f"step {place}, {name}, {figures.count(tokens)} tokens: {figures.ms(busy)}"
        device.append(lanes.Span(name, now, now + busy, tip, "soft" if kind == "decode" else "ours"))
        now += busy
        rows.append(
            (
                cell(str(place), place),
                text(name),
                *(cell(show, value) for show, value in ((figures.count(tokens), tokens),)),
                cell(figures.ms(busy), busy),
                cell(figures.ms(idle), idle),
            )
        )
    head = (*columns("step"), *columns("kind"), *columns("tokens", "device", "host before it", words=0))
    data = Table("Steps", head, tuple(rows))
    cut = f" The first {len(shown)} of {len(steps)} steps." if len(steps) > len(shown) else ""
    says = f"The device's steps one after the other, and where it waited for the host.{cut}"
    both = [lanes.Lane("device", device), lanes.Lane("host alone", host)] if host else [lanes.Lane("device", device)]
    return Plot("timeline", "Step by step", says, lambda width: lanes.draw(width, both), data, came)
