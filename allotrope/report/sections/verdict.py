"""Is it still the same model: the verdict, block by block, in distributions and in tokens."""

from __future__ import annotations

from allotrope.report import figures
from allotrope.report.blocks import BAD, GOOD, PLAIN, WARN, Block, Cell, Fold, Paragraph, Plot, Section, Source, Table
from allotrope.report.plots import layers as plot
from allotrope.report.sections.common import cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.standing import PROVEN, Standing
from allotrope.report.value import Value

_LOGITS = (
    ("mean KL divergence, nats", "mean_kl", figures.number),
    ("largest KL divergence, nats", "max_kl", figures.number),
    ("same likeliest token", "same_top1", figures.percent),
    ("largest change of a log-probability", "max_logprob_change", figures.number),
)


def section(subject: Subject, standing: Standing) -> Section:
    """The verdict and what it rests on."""
    found = subject.results.get("verify")
    if found is None:
        return Section("verdict", "Verdict", missing=f"allotrope verify {subject.folder}")
    came = source(subject, found)
    told = f"{standing.word.capitalize()}. {standing.means}"
    blocks: list[Block] = [Paragraph((told,), PLAIN if standing.kind == PROVEN else BAD)]
    if standing.kind != PROVEN and standing.alarm:
        blocks.append(Paragraph(("To verify this engine: run ", f"allotrope verify {subject.folder}", "."), WARN))
    blocks += _located(found)
    levels = found.at("levels")
    if levels is not None:
        blocks += _layers(levels, came)
        blocks += _distributions(found, levels, came)
        blocks += _tokens(found, levels, came)
        blocks += _preflight(levels, came)
    return Section("verdict", "Verdict", tuple(blocks))


def _located(found: Value) -> list[Block]:
    place = found.at("located")
    if place is None:
        return []
    where = f"{place.words('path')} ({place.words('op')}, in {place.words('block')})"
    return [Paragraph((f"The first place that is wrong: {where}: {place.words('detail')}.",), BAD)]


def _layers(levels: Value, came: Source) -> list[Block]:
    layers = levels.at("layers")
    if layers is None:
        return [Paragraph(("The walk through the blocks was left out.",), WARN)]
    blocks, rows = [], []
    for row in layers.each("rows"):
        name = row.need("block").as_text()
        injected, floor = (_relative(row, part) for part in ("injected", "floor"))
        total, complaint = _relative(row, "total"), row.words("complaint")
        said = f"{name}: adds {figures.number(injected)}, floor {figures.number(floor)}"
        tip = f"{said}\n{complaint}" if complaint else said
        blocks.append(plot.Block(name, injected or 0.0, floor or 0.0, complaint is None, tip))
        tone = BAD if complaint else PLAIN
        mean = row.path("total", "mean_abs")
        rows.append(
            (
                text(name, tone, code=True),
                cell(figures.number(injected), injected, tone),
                cell(figures.number(floor), floor),
                cell(figures.number(total), total),
                cell(figures.number(mean.as_number() if mean else None), mean.as_number() if mean else None),
                text("within the policy" if complaint is None else complaint, tone),
            )
        )
    if not blocks:
        return []
    wrong = [block.name for block in blocks if not block.well]
    says = (
        f"Every one of the {len(blocks)} blocks stays at the height of rounding."
        if not wrong
        else f"{len(wrong)} of {len(blocks)} blocks add more than their precision explains; the first is {wrong[0]}."
    )
    says += " Errors are relative to the size of the original's values; the floor is the original's own rounding."
    names = ("block", "adds", "floor", "after the block", "mean absolute", "judgement")
    head = (*columns(*names[:5]), *columns(names[5]))
    data = Table("Errors by block", head, tuple(rows))
    return [Plot("layers", "Where does it begin to differ?", says, lambda width: plot.draw(width, blocks), data, came)]


def _relative(row: Value, part: str) -> float | None:
    found = row.path(part, "rms_rel_rms")
    return found.as_number() if found is not None else None


def _distributions(found: Value, levels: Value, came: Source) -> list[Block]:
    """Both answers of a quantised engine side by side: how well it is computed, and what its formats cost."""
    logits, cost = levels.at("logits"), found.at("cost")
    known = [(name, part) for name, part in (("implementation", logits), ("what the formats cost", cost)) if part]
    if not known:
        return []
    if cost is None:
        known = [("engine", logits)] if logits else []
    names = ["measure", *(name for name, _ in known), *(["by rounding alone"] if logits else [])]
    rows: list[tuple[Cell, ...]] = []
    for words, key, said in _LOGITS:
        values = [part.number(key) for _, part in known]
        floor = logits.path("floor", key) if logits else None
        if logits:
            values.append(floor.as_number() if floor is not None else None)
        rows.append((text(words), *(cell(said(value), value) for value in values)))
    for words, key in (("perplexity", "perplexity"), ("the original's", "original_perplexity")):
        values = [part.number(key) for _, part in known]
        shown = [figures.NONE if value is None else f"{value:,.4f}" for value in values]
        rest = [text(None)] if logits else []
        rows.append((text(words), *(cell(word, value) for word, value in zip(shown, values, strict=True)), *rest))
    where = [f"{figures.count(part.number('positions'))} tokens ({name})" for name, part in known]
    note = f"Teacher-forced, over {' and '.join(where)}."
    return [Table("How far apart are the distributions?", columns(*names), tuple(rows), came, note=note)]


def _tokens(found: Value, levels: Value, came: Source) -> list[Block]:
    tokens = levels.at("tokens")
    if tokens is None:
        return []
    equal, total = tokens.number("equal"), tokens.number("total")
    exact, prompts = tokens.number("exact_prompts"), tokens.number("prompts")
    blocks: list[Block] = []
    rows = [
        (
            text("greedy tokens that are the original's"),
            cell(f"{figures.count(equal)} of {figures.count(total)}", equal),
        ),
        (
            text("answers that are the same throughout"),
            cell(f"{figures.count(exact)} of {figures.count(prompts)}", exact),
        ),
    ]
    blocks.append(Table("Does it say the same?", columns("what was said", "how much"), tuple(rows), came))
    divergences = tokens.each("divergences")
    first = found.at("first_divergence")
    if first is not None:
        explained = first.flag("explained")
        margin, floor = (figures.number(first.number(key)) for key in ("margin", "floor"))
        verdict = "less than" if explained else "more than"
        told = (
            f"The first token that differs: token {figures.count((first.number('position') or 0) + 1)} after prompt "
            f"“{first.words('prompt')}”. There the original prefers its own token by {margin} in logits, {verdict} "
            f"what rounding moves ({floor})."
        )
        blocks.append(Paragraph((told,), PLAIN if explained else BAD))
    if divergences:
        blocks.append(Fold("Every first difference", (_divergences(divergences, came),)))
    return blocks


def _divergences(found: list[Value], came: Source) -> Table:
    rows = []
    for one in found:
        explained = one.flag("explained")
        rows.append(
            (
                text(one.words("prompt")),
                *(cell(figures.count(one.number(key)), one.number(key)) for key in ("position", "engine", "original")),
                *(cell(figures.number(one.number(key)), one.number(key)) for key in ("margin", "floor")),
                text("explained by rounding" if explained else "not explained", GOOD if explained else BAD),
            )
        )
    names = ("prompt", "at token", "engine says", "original says", "margin", "floor")
    return Table("First differences", (*columns(*names), *columns("judgement")), tuple(rows), came, sortable=True)


def _preflight(levels: Value, came: Source) -> list[Block]:
    found = levels.at("preflight")
    if found is None:
        return [Paragraph(("Whether both were asked the same question was not checked.",), WARN)]
    words = {True: ("well", GOOD), False: ("wrong", BAD), None: ("not asked", PLAIN)}
    rows = []
    for check in found.each("checks"):
        word, tone = words[check.flag("ok")]
        rows.append((text(check.words("name")), text(word, tone), text(check.words("detail"))))
    table = Table("Are both asked the same question?", columns("check", "result", "found", words=3), tuple(rows), came)
    wrong = [row for row in rows if row[1].tone == BAD]
    return [table] if wrong else [Fold(f"Preflight: {figures.some(len(rows), 'check')}, nothing wrong", (table,))]
