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
    Code,
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
_KL = {"mean": "mean", "median": "median", "p99": "99 % below", "max": "largest"}
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


def _interval(one: Value | None, key: str = "interval") -> tuple[float | None, float | None]:
    found = one.at(key) if one is not None else None
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
    """Perplexity and distributions over a text, and code that was completed and run."""
    found = subject.results.get("eval")
    if found is None:
        return Section("eval", "Over a text", missing=f"allotrope eval {subject.folder} --text FILE")
    blocks: list[Block] = []
    for number, run in enumerate((found, *found.each("earlier")), start=1):
        came, which = source(subject, run), f" ({number})" * (number > 1)
        if run.at("perplexity") is not None:
            blocks += _perplexity(run, came, which)
        if run.at("code") is not None:
            blocks += _code(run, came, which)
    return Section("eval", "Over a text", tuple(blocks or [Paragraph(("It holds no figure.",), WARN)]))


def _perplexity(found: Value, came: Source, which: str) -> list[Block]:
    """`which` tells one run's tables from another's."""
    ratio, (low, high) = found.number("perplexity_ratio"), _interval(found, "perplexity_ratio_interval")
    read = found.at("text")
    where = f"{figures.count(read.number('scored'))} tokens of {read.words('file')}" if read is not None else "a text"
    told = f"Over {where}, the engine's perplexity is {_ratio(ratio)} times the original's"
    told += f" (95 %: {_ratio(low)} to {_ratio(high)})." if low is not None else "."
    pairs = (("perplexity", "perplexity"), ("mean loss a token, nats", "nll_per_token"))
    rows = []
    for name, key in pairs:
        ours, theirs = found.number(key), found.number(f"original_{key}")
        rows.append((text(name), cell(_fine(ours), ours), cell(_fine(theirs), theirs)))
    both = Table(f"Perplexity{which}", columns("measure", "engine", "original"), tuple(rows), came)
    apart = []
    kl = found.at("kl")
    for word in ("mean", "median", "p99", "max") if kl is not None else ():
        value = kl.number(word) if kl is not None else None
        apart.append((text(f"KL divergence, {_KL[word]}, nats"), cell(figures.number(value), value)))
    same, change = found.number("same_top1"), found.at("probability_change")
    apart.append((text("same likeliest token"), cell(figures.percent(same), same)))
    if change is not None:
        mean, rms = change.number("mean"), change.number("rms")
        apart.append((text("change of the right token's probability, mean"), cell(figures.signed(mean), mean)))
        apart.append((text("change of the right token's probability, RMS"), cell(figures.number(rms), rms)))
    distance = Table(f"Distance from the original{which}", columns("measure", "engine"), tuple(apart), came)
    return [Paragraph((told,)), both, distance]


def _code(found: Value, came: Source, which: str) -> list[Block]:
    code = found.need("code")
    problems, same = code.number("problems"), code.number("same_completions")
    told = f"{figures.count(problems)} functions of {code.words('file')} completed greedily; {figures.count(same)} "
    told += "completions are the same on both sides."
    ours, theirs = found.number("pass_at_1"), found.number("original_pass_at_1")
    if ours is None:
        why = found.words("pass_at_1_why_not") or "they were not run"
        return [Paragraph((f"{told} None was run: {why}.",), QUIET)]
    paired = found.at("pass_at_1_paired")
    low, high = _interval(paired)
    difference = paired.number("difference") if paired is not None else None
    between = (
        f"{figures.signed(low)} to {figures.signed(high)}" if low is not None and high is not None else figures.NONE
    )
    row = (
        text("pass@1"),
        cell(figures.percent(ours), ours),
        cell(figures.percent(theirs), theirs),
        cell(figures.signed(difference), difference),
        cell(between, low),
    )
    head = columns("measure", "engine", "original", "difference", "95 % interval")
    return [Table(f"Code that runs{which}", head, (row,), came, note=told)]


def _ratio(value: float | None) -> str:
    return figures.NONE if value is None else f"{value:.5f}"


def _fine(value: float | None) -> str:
    """Where the fifth digit is what differs."""
    return figures.NONE if value is None else f"{value:,.6g}"


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
    if not different:
        told = f"{len(pairs)} of {len(pairs)} answers are the same on both sides."
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
    command = Code(came.command) if came.command else "a command that was not kept"
    return Paragraph((command, f" · {figures.date(came.date)}"), QUIET)
