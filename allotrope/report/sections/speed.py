"""How fast: side by side with the peers of the same run, under the machine's limit; the grid; a load of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allotrope.report import figures
from allotrope.report.blocks import BAD, GOOD, PLAIN, WARN, Block, Cell, Paragraph, Plot, Section, Source, Table
from allotrope.report.plots import bars
from allotrope.report.sections import peers
from allotrope.report.sections.common import alarm, cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.standing import Standing
from allotrope.report.value import Value
from allotrope.units import bytes_text

ORIGINAL = "hf"  # the peer that is the original: transformers, as it comes
_QUIET = 0.15  # cores that others may have had, as `allotrope bench` has it
_SHOWN = 8  # groups of bars; more are in the table
_LATENCIES = (
    ("queue_ms", "waiting to be started"),
    ("ttft_ms", "first token"),
    ("tpot_ms", "each token after it"),
    ("itl_ms", "between two tokens"),
    ("total_ms", "whole answer"),
)


@dataclass(frozen=True)
class Headline:
    """The figures that stand at the top: those of the first cell that was measured."""

    cell: str
    tokens_per_s: float
    against_original: float | None
    best_peer: str | None
    against_best: float | None
    share_of_limit: float | None
    memory: float | None
    stale: str  # why it is not this engine's, if so


def headline(subject: Subject) -> Headline | None:
    """Of the first cell that has a figure; a load's rate where there is no grid."""
    found = subject.results.get("bench")
    if found is None:
        return None
    for one in found.each("cells"):
        rate = one.number("tokens_per_s")
        if rate is not None:
            best, against = one.words("best_peer"), one.number("ratio_to_best")
            memory, share = one.number("peak_memory_bytes"), one.number("share_of_limit")
            stale = source(subject, found).stale
            return Headline(_named(one), rate, ratio(one, ORIGINAL), best, against, share, memory, stale)
    load = found.at("load")
    rate = load.number("output_tokens_per_s") if load is not None else None
    if load is None or rate is None:
        return None
    name = f"a load of {figures.count(load.number('requests'))} requests"
    share, stale = load.number("share_of_limit"), source(subject, load, found).stale
    return Headline(name, rate, None, None, None, share, None, stale)


def ratio(one: Value, peer: str) -> float | None:
    """How many times as fast as a peer the engine is in a cell, if the peer took part and said the same."""
    found = one.path("peers", peer)
    if found is None or found.words("reason_absent") or peers.different(found):
        return None
    ours, theirs = one.number("tokens_per_s"), found.number("tokens_per_s")
    return ours / theirs if ours is not None and theirs else None


def section(subject: Subject, standing: Standing) -> Section:
    """The grid and the load, each if it was measured."""
    found = subject.results.get("bench")
    if found is None:
        return Section("speed", "Speed", missing=f"allotrope bench {subject.folder} --against hf")
    blocks: list[Block] = [*alarm(standing)]
    cells = found.each("cells")
    if cells:
        blocks += _busy(cells)
        blocks += _beside(subject, found, cells)
        came = source(subject, found)
        blocks += [_grid(cells, came), *_skipped(found, came), *peers.table(found, cells, came)]
    load = found.at("load")
    if load is not None:
        blocks += _load(subject, found, load)
    return Section("speed", "Speed", tuple(blocks))


def _busy(cells: Sequence[Value]) -> list[Block]:
    """Figures that something else disturbed are not shown as if they were quiet ones."""
    sides = [one for cell in cells for one in (cell, *_beside_it(cell))]
    most = max((one.number("foreign") or 0.0 for one in sides), default=0.0)
    if most <= _QUIET:
        return []
    told = f"The machine was not idle: other processes had up to {most:.2g} cores during a sample that counts."
    return [Paragraph((told,), WARN)]


def _beside_it(cell: Value) -> list[Value]:
    found = cell.at("peers")
    return [] if found is None else [one for _, one in found.pairs()]


def _named(one: Value) -> str:
    batch, into, out = (figures.count(one.number(key)) for key in ("batch", "input", "output"))
    return f"batch {batch}, {into} tokens in, {out} out"


def _short(one: Value) -> str:
    batch, into, out = (figures.count(one.number(key)) for key in ("batch", "input", "output"))
    return f"{batch} × ({into} → {out})"


def _beside(subject: Subject, found: Value, cells: Sequence[Value]) -> list[Block]:
    measured = [one for one in cells if one.number("tokens_per_s") is not None]
    if not measured:
        return [Paragraph(("No cell of the grid could be measured.",), WARN)]
    groups = tuple(_group(subject, one) for one in measured[:_SHOWN])
    rows = []
    for group in groups:
        rows += [
            (text(group.name), text(bar.name), cell(figures.number(bar.value), bar.value), text(bar.reason or None))
            for bar in group.bars
        ]
    head = (*columns("cell", "runner", "tokens/s", words=2), *columns("note"))
    data = Table("Tokens per second", head, tuple(rows))
    says = "Tokens per second, prefill included, each in the same run on the same machine."
    if any(group.limit for group in groups):
        says += " The dashed line is the most that the machine's memory and cores allow."
    if len(measured) > _SHOWN:
        says += f" The first {_SHOWN} of {len(measured)} cells; the table below has all."
    came = source(subject, found)
    return [Plot("speed", "Side by side", says, lambda width: bars.draw(width, groups, figures.number), data, came)]


def _group(subject: Subject, one: Value) -> bars.Group:
    rate, share = one.number("tokens_per_s") or 0.0, one.number("share_of_limit")
    told = f"{subject.name}: {figures.rate(rate)}" + (f", {figures.percent(share)} of the limit" if share else "")
    shown = [bars.Bar("this engine", rate, told, "ours")]
    beside = one.at("peers")
    known = []
    for peer, value in beside.pairs() if beside is not None else ():
        speed, reason = value.number("tokens_per_s"), value.words("reason_absent")
        form = " ".join(word for word in (value.words("version"), peers.form(value)) if word)
        tip = f"{peer}{f' ({form})' if form else ''}: {figures.rate(speed)}"
        if peers.different(value):
            known.append(bars.Bar(f"{peer} (wrong)", speed, f"{tip}\nsays something else: does not count", "soft"))
        else:
            known.append(bars.Bar(peer, speed, tip, reason=reason or ""))
    shown += sorted(known, key=lambda bar: -(bar.value or 0.0))
    limit = rate / share if share else None  # where its line stands
    return bars.Group(_named(one), shown, limit, f"limit {figures.rate(limit)}" if limit else "")


def _grid(cells: Sequence[Value], came: Source) -> Table:
    rows = []
    for one in cells:
        share, best = one.number("share_of_limit"), one.number("ratio_to_best")
        tone = PLAIN if best is None else GOOD if best > 1 else BAD if best < 1 else PLAIN
        beside = f"{figures.times(best)} {one.words('best_peer')}" if best is not None else None
        original = ratio(one, ORIGINAL)
        times = ("latency_ms", "latency_p95_ms", "latency_p99_ms", "t_ctx_ms", "t_gen_ms")
        rows.append(
            (
                Cell(_short(one), one.number("batch")),
                cell(figures.number(one.number("tokens_per_s")), one.number("tokens_per_s")),
                *(cell(figures.ms(one.number(key)), one.number(key)) for key in times),
                cell(figures.percent(one.number("spread")), one.number("spread")),
                cell(_bytes(one.number("peak_memory_bytes")), one.number("peak_memory_bytes")),
                cell(figures.percent(share), share),
                cell(figures.times(original), original),
                Cell(beside or figures.NONE, best, tone),
            )
        )
    names = ("cell", "tokens/s", "latency", "p95", "p99", "prefill", "decode", "spread", "memory", "of limit")
    head = columns(*names, "× original", "× best peer")
    note = (
        "Cell: batch × (tokens in → out). Latency is a median, spread the most less the least over it; prefill is the "
    )
    note += "time to the first token, decode the rest."
    return Table("The grid", head, tuple(rows), came, sortable=True, note=note)


def _skipped(found: Value, came: Source) -> list[Block]:
    """Cells that were asked for and have no figures."""
    rows = [(text(_short(one)), text(one.words("reason"))) for one in found.each("skipped")]
    return [Table("Cells without figures", columns("cell", "why", words=2), tuple(rows), came)] if rows else []


def _load(subject: Subject, found: Value, load: Value) -> list[Block]:
    requests, tokens = (figures.count(load.number(key)) for key in ("requests", "output_tokens"))
    share, idle = load.number("share_of_limit"), load.number("idle_share")
    of_limit = f", {figures.percent(share)} of the limit's speed" if share is not None else ""
    told = (
        f"{requests} requests, {tokens} tokens in {figures.seconds(load.number('seconds'))}: "
        f"{figures.rate(load.number('output_tokens_per_s'))}{of_limit}. The device stood still for "
        f"{figures.percent(idle)} of the time although there was work."
    )
    rows = []
    for key, words in _LATENCIES:
        spread = load.at(key)
        if spread is not None:
            shown = (spread.number(name) for name in ("mean", "p50", "p90", "p99"))
            rows.append((text(words), *(cell(figures.ms(value), value) for value in shown)))
    names = ("time", "mean", "median", "90 % below", "99 % below")
    table = Table("Under a load", columns(*names), tuple(rows), source(subject, load, found), note=told)
    return [table]


def _bytes(count: float | None) -> str:
    return figures.NONE if count is None else bytes_text(count)
