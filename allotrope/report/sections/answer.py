"""The first screen: is it still the same model, and how much faster is it?"""

from __future__ import annotations

from dataclasses import dataclass

from allotrope.report import figures
from allotrope.report.blocks import BAD, PLAIN, Tile, Tiles
from allotrope.report.escape import markup
from allotrope.report.html import Renderer
from allotrope.report.sections import passport, speed
from allotrope.report.sources import Subject
from allotrope.report.standing import PROVEN, Standing
from allotrope.report.value import ResultError, Value
from allotrope.units import bytes_text


@dataclass(frozen=True)
class Card:
    """One of the two questions, its answer in a few words, and lines below it."""

    question: str
    answer: str
    lines: tuple[str, ...]
    tone: str
    alarm: str = ""


@dataclass(frozen=True)
class Answer:
    """What stands at the top."""

    name: str
    headline: str
    about: str
    cards: tuple[Card, ...]
    tiles: Tiles


def answer(subject: Subject, standing: Standing) -> Answer:
    """From the engine, its verdict and its first speed."""
    engine = subject.engine
    about = [
        f"{subject.name}: {passport.family(engine)}, {figures.big(passport.parameters(engine))} parameters",
        passport.formats(subject),
        _device(engine),
    ]
    fast = _headline(subject)
    return Answer(
        subject.name,
        _sentence(standing, fast),
        ", ".join(part for part in about if part),
        (_verdict_card(subject, standing), _speed_card(standing, fast)),
        Tiles(tuple(_tiles(subject, fast))),
    )


def _headline(subject: Subject) -> speed.Headline | None:
    try:
        return speed.headline(subject)
    except ResultError:  # the section on speed says what is wrong
        return None


def _device(engine: Value) -> str:
    device = engine.at("device")
    if device is None:
        return ""
    cores = device.number("cores")
    return f"on {device.words('name')}{f', {cores:.0f} cores' if cores else ''}"


def _sentence(standing: Standing, fast: speed.Headline | None) -> str:
    if standing.kind != PROVEN or fast is None or fast.stale:
        return f"{standing.headline}."
    if fast.against_original is not None and fast.against_original < 1:
        return f"{standing.headline}, but slower: {figures.times(fast.against_original)} the original's speed."
    if fast.against_original is not None:
        return f"{standing.headline}, {figures.times(fast.against_original)} as fast."
    return f"{standing.headline}, at {figures.rate(fast.tokens_per_s)}."


def _verdict_card(subject: Subject, standing: Standing) -> Card:
    lines = [standing.means]
    found = subject.results.get("verify")
    try:
        cost = found.at("cost") if found is not None else None
        tokens = found.path("levels", "tokens") if found is not None else None
        if cost is not None:
            kl, same = cost.number("mean_kl"), cost.number("same_top1")
            lines.append(f"Formats cost {figures.number(kl)} nats of KL; same likeliest token {figures.percent(same)}.")
        elif tokens is not None:
            equal, total = tokens.number("equal"), tokens.number("total")
            lines.append(f"{figures.count(equal)} of {figures.count(total)} greedy tokens are the original's.")
    except ResultError:  # the section on the verdict says what is wrong
        pass
    word = standing.word[:1].upper() + standing.word[1:]
    return Card("Is it still the same model?", word, tuple(lines), PLAIN if standing.kind == PROVEN else BAD)


def _speed_card(standing: Standing, fast: speed.Headline | None) -> Card:
    question = "How much faster is it?"
    if fast is None:
        return Card(question, "Not measured", (), "none", "")
    lines = [f"{figures.rate(fast.tokens_per_s)} at {fast.cell}."]
    if fast.against_original is None:
        lines.append("Not measured beside the original.")
        big = figures.rate(fast.tokens_per_s)
        lines[0] = f"At {fast.cell}."
    else:
        big = f"{figures.times(fast.against_original)} the original"
    if fast.best_peer and fast.against_best is not None and fast.best_peer != speed.ORIGINAL:
        lines.append(f"{figures.times(fast.against_best)} the best peer, {fast.best_peer}.")
    slower = fast.against_original is not None and fast.against_original < 1
    alarm = standing.alarm or fast.stale
    tone = BAD if alarm else "none" if slower else PLAIN
    return Card(question, big, tuple(lines), tone, alarm)


def _tiles(subject: Subject, fast: speed.Headline | None) -> list[Tile]:
    engine = subject.engine
    tiles = []
    if fast is not None and fast.share_of_limit is not None:
        tiles.append(Tile("Of the machine's limit", figures.percent(fast.share_of_limit), "of the speed it allows"))
    if fast is not None and fast.memory is not None:
        tiles.append(Tile("Memory", bytes_text(fast.memory), "at the peak, while running"))
    size = passport.nbytes(engine)
    if size is not None:
        tiles.append(Tile("Engine", bytes_text(size), "on disk"))
    seconds = engine.path("evidence", "seconds")
    if seconds is not None:
        tiles.append(Tile("Built in", figures.seconds(seconds.as_number()), "once, on this machine"))
    verify = subject.results.get("verify")
    took = verify.raw.get("seconds") if verify is not None else None
    if isinstance(took, (int, float)):
        tiles.append(Tile("Verified in", figures.seconds(took), ""))
    return tiles


def html(found: Answer, renderer: Renderer, heading: str) -> str:
    """The first screen as HTML."""
    cards = []
    for card in found.cards:
        lines = "".join(f"<p>{markup(line)}</p>" for line in card.lines)
        alarm = f'<p class="alarm">{markup(card.alarm)}</p>' if card.alarm else ""
        cards.append(
            f'<div class="card {card.tone}"><p class="question">{markup(card.question)}</p>{alarm}'
            f'<p class="big">{markup(card.answer)}</p>{lines}</div>'
        )
    return (
        f'<{heading}>{markup(found.headline)}</{heading}><p class="lead">{markup(found.about)}</p>'
        f'<div class="answer">{"".join(cards)}</div>{renderer.blocks((found.tiles,))}'
    )
