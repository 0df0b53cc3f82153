"""Does it matter for the task: ROUGE with intervals, distances over a text, and answers side by side."""

from __future__ import annotations

from itertools import takewhile

from allotrope.report import figures
from allotrope.report.blocks import (
    BAD,
    GOOD,
    PLAIN,
    QUIET,
    WARN,
    Block,
    Fold,
    Pair,
    Paragraph,
    Plot,
    Section,
    Source,
    Table,
)
from allotrope.report.plots import whiskers
from allotrope.report.sections.common import cell, columns, source, text
from allotrope.report.sources import Subject
from allotrope.report.value import ResultError, Value

_MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_PAIRS = 20  # of answers; the others are in the raw results


def rouge(subject: Subject) -> Section:
    """ROUGE of both sides, and the difference article by article."""
    found = subject.results.get("summarize")
    if found is None:
        return Section("rouge", "Summaries", missing=f"allotrope summarize {subject.folder} --data FILE.csv")
    came = source(subject, found)
    engine, original = (found.need("rouge").need(side) for side in ("engine", "original"))
    paired = found.at("paired_by")
    points, rows = [], []
    for key, name in _MEASURES.items():
        ours, theirs = engine.number(key), original.number(key)
        one = paired.at(key) if paired is not None else found.at("paired") if key == "rouge1" else None
        difference, p_value = (one.number(word) if one else None for word in ("difference", "p_value"))
        low, high = _interval(one)
        least = one.number("detectable") if one else None
        between = f"{figures.signed(low)} to {figures.signed(high)}" if low is not None and high is not None else None
        if difference is not None:
            tip = f"{name}: {figures.signed(difference)} points" + (f"\n95 %: {between}" if between else "")
            points.append(whiskers.Point(name, difference, low, high, tip))
        rows.append(
            (
                text(name),
                *(cell(figures.NONE if value is None else f"{value:.2f}", value) for value in (ours, theirs)),
                cell(figures.signed(difference), difference),
                cell(between or figures.NONE, low),
                cell(figures.number(p_value), p_value),
                cell(figures.number(least), least),
            )
        )
    head = columns("F × 100", "engine", "original", "difference", "95 % interval", "p", "detectable")
    note = "Detectable: the least true difference that so many articles show four times in five."
    data = Table("ROUGE", head, tuple(rows), came, note=note)
    blocks: list[Block] = [Paragraph((_about(found),)), *_gate(found), data]
    if points:
        says = "Engine minus original, article by article, in points; the line is the 95 % interval."
        draw = lambda width: whiskers.draw(width, points, _point)  # noqa: E731
        blocks.append(Plot("rouge", "Difference in ROUGE", says, draw, data, came))
    return Section("rouge", "Summaries", tuple(blocks))


def _about(found: Value) -> str:
    data = found.at("data")
    if data is None:
        return "Greedy summaries of the same articles by the engine and by the original."
    count, file = figures.count(data.number("examples")), data.words("file")
    same = found.number("same_texts")
    told = f"Greedy summaries of {count} articles ({file}) by the engine and by the original, in one run."
    return told if same is None else f"{told} {figures.count(same)} texts are the same, token by token."


def _gate(found: Value) -> list[Block]:
    threshold, passed = found.number("threshold"), found.flag("passed")
    if threshold is None or passed is None:
        return []
    word = "passes" if passed else "does not pass"
    told = f"Allowed: {figures.number(threshold)} points of ROUGE-1 below the original; the engine {word}."
    return [Paragraph((told,), PLAIN if passed else BAD)]


def _interval(one: Value | None) -> tuple[float | None, float | None]:
    found = one.at("interval") if one is not None else None
    if found is None:
        return None, None
    ends = found.items()
    if len(ends) != 2:
        raise ResultError("has not two ends", where=found.place)
    if any(end.raw is None for end in ends):
        return None, None
    return ends[0].as_number(), ends[1].as_number()


def _point(value: float) -> str:
    return figures.signed(value) if value else "0"


def distances(subject: Subject) -> Section:
    """Perplexity and distributions over a text."""
    found = subject.results.get("eval")
    if found is None:
        return Section("eval", "Over a text", missing=f"allotrope eval {subject.folder} --text FILE")
    came = source(subject, found)
    rows = [(text(name), cell(shown, value)) for name, shown, value in _figures(found)]
    if not rows:
        return Section("eval", "Over a text", (Paragraph(("It holds no figure.",), WARN),))
    return Section("eval", "Over a text", (Table("Beside the original", columns("", "value"), tuple(rows), came),))


def _figures(found: Value) -> list[tuple[str, str, float | None]]:
    listed: list[tuple[str, str, float | None]] = []
    for name, value in found.pairs():
        if name in ("environment", "samples", "options", "seconds") or name.startswith("_"):
            continue
        if isinstance(value.raw, (int, float)) and not isinstance(value.raw, bool):
            number = value.as_number()
            shown = figures.percent(number) if name in ("same_top1", "pass_at_1") else f"{number:,.6g}"
            listed.append((name.replace("_", " "), shown, number))
        elif value.is_object:
            listed += [(f"{name}: {inner}", shown, number) for inner, shown, number in _figures(value)]
    return listed


def outputs(subject: Subject) -> Section:
    """Engine and original side by side, the first difference marked."""
    found = subject.results.get("summarize")
    if found is None:
        return Section(
            "outputs", "Answers side by side", missing=f"allotrope summarize {subject.folder} --data FILE.csv"
        )
    came = source(subject, found)
    samples = found.each("samples")
    apart = {one.words("example") or "": one for one in found.each("divergences")}
    pairs: list[Pair] = []
    for one in samples:
        ours, theirs = one.words("engine") or "", one.words("original") or ""
        differ = None if ours == theirs else _alike(ours, theirs)
        name = one.words("id") or ""
        more = [("The reference", reference)] if (reference := one.words("reference")) else []
        more += [("The prompt", prompt)] if (prompt := one.words("prompt")) else []
        sides = (("engine", ours), ("original", theirs))
        pairs.append(Pair(name, sides, differ, tuple(more), _why(apart.get(name))))
    if not pairs:
        return Section("outputs", "Answers side by side", (Paragraph(("No answer was kept.",)),))
    pairs.sort(key=lambda pair: pair.differ is None)  # those that differ first
    different = sum(pair.differ is not None for pair in pairs)
    told = f"{different} of {len(pairs)} answers differ; what follows the first difference is marked."
    blocks: list[Block] = [Paragraph((told,), GOOD if not different else PLAIN), *pairs[:3]]
    if len(pairs) > 3:
        shown = pairs[3:_PAIRS]
        blocks.append(Fold(f"{len(shown)} more", tuple(shown)))
    if len(pairs) > _PAIRS:
        blocks.append(Paragraph((f"{len(pairs) - _PAIRS} more are in the raw results.",), QUIET))
    blocks.append(_cited(came))
    return Section("outputs", "Answers side by side", tuple(blocks))


def _alike(ours: str, theirs: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def _why(divergence: Value | None) -> str:
    if divergence is None:
        return ""
    margin, floor = divergence.number("margin"), divergence.number("floor")
    if margin is None or floor is None:
        return ""
    word = "rounding explains it" if divergence.flag("explained") else "rounding does not explain it"
    return f"The original prefers its own token by {figures.number(margin)} (floor {figures.number(floor)}): {word}."


def _cited(came: Source) -> Block:
    return Paragraph((f"{came.command or 'a command that was not kept'} · {figures.date(came.date)}",), QUIET)
