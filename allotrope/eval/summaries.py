"""The summarisation task: both sides' greedy summaries of the same articles, in ROUGE, compared article by article."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from allotrope.errors import UsageError
from allotrope.eval import rouge
from allotrope.eval.articles import Article, Prompt, chat_prompt, least_room, plain_prompt, read
from allotrope.eval.paired import Paired, compare
from allotrope.runtime.bounds import show

if TYPE_CHECKING:  # torch comes late: what is wrong with a file is said at once
    from allotrope.eval.divergence import Divergence
    from allotrope.eval.sides import Sides
    from allotrope.eval.writing import Written

GATED = "rouge1"
_MOST = 10**6


class Shown(Protocol):
    """Progress as somebody sees it."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""


Progress = Callable[[int, str], AbstractContextManager[Shown]]


@dataclass(frozen=True)
class Asked:
    """What a summarisation is asked; wrong numbers are errors at birth."""

    data: Path
    examples: int
    max_output: int = 100
    max_input: int | None = None  # tokens; None: as many as leave room for the output
    batch_size: int = 8
    prompt: str = "auto"
    stem: bool = False
    threshold: float | None = None  # points of ROUGE-1 that the engine may be worse by
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("examples", _MOST), ("max_output", _MOST), ("max_input", _MOST), ("batch_size", 4096)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"--{name.replace('_', '-')} is {value}", remedy=f"give a number from 1 to {most}")
        if self.threshold is not None and not 0 <= self.threshold <= 100:
            raise UsageError(f"--threshold is {show(self.threshold)}", remedy="give points of ROUGE-1 from 0 to 100")


@dataclass(frozen=True)
class Found:
    """Both sides' summaries and their scores."""

    asked: Asked
    articles: Sequence[Article]
    prompts: Sequence[Prompt]
    chat: bool
    max_input: int
    engine: Written
    original: Written
    texts: tuple[list[str], list[str]]
    scores: tuple[rouge.Scores, rouge.Scores]
    paired: dict[str, Paired]
    divergences: Sequence[Divergence]

    @property
    def loss(self) -> float:
        """By how many points of ROUGE-1 the engine is worse."""
        return -self.paired[GATED].difference

    @property
    def passed(self) -> bool | None:
        """Whether that is no more than the threshold; None without one."""
        return None if self.asked.threshold is None else self.loss <= self.asked.threshold

    @property
    def needed(self) -> int | None:
        """How many articles would show a loss of the threshold; None where these do, or where it cannot be known."""
        threshold, least = self.asked.threshold, self.paired[GATED].detectable
        if not threshold or least is None or least <= threshold:
            return None
        return math.ceil(len(self.articles) * (least / threshold) ** 2)

    def to_json(self) -> dict[str, Any]:
        """The figures, without the examples."""
        means = [{name: math.fsum(one) / len(one) for name, one in side.items()} for side in self.scores]
        sides = {"engine": self.engine, "original": self.original}
        return {
            "data": {
                "file": str(self.asked.data),
                "examples": len(self.articles),
                "cut": sum(prompt.cut > 0 for prompt in self.prompts),
                "max_input": self.max_input,
                "max_output": self.asked.max_output,
                "batch_size": self.asked.batch_size,
                "prompt": "chat" if self.chat else "plain",
                "stemmed": self.asked.stem,
            },
            "rouge": {"engine": means[0], "original": means[1]},
            "paired": {"measure": GATED, **self.paired[GATED].to_json()},
            "paired_by": {name: one.to_json() for name, one in self.paired.items()},
            "same_texts": len(self.articles) - len(self.divergences),
            "divergences": [one.to_json() for one in self.divergences],
            "threshold": self.asked.threshold,
            "passed": self.passed,
            "examples_needed": self.needed,
            "sides": {
                name: {"seconds": one.seconds, "tokens": one.tokens, "tokens_per_s": one.tokens / one.seconds}
                for name, one in sides.items()
            },
        }

    def samples(self) -> list[dict[str, Any]]:
        """Each article's summaries side by side, with their scores; the article itself stays where it is."""
        rows = zip(self.articles, self.prompts, *self.texts, strict=True)
        return [
            {
                "id": article.id,
                "prompt_tokens": len(prompt.ids),
                "cut_tokens": prompt.cut,
                "reference": article.reference,
                "engine": ours,
                "original": theirs,
                "rouge": {
                    side: {name: values[i] for name, values in self.scores[j].items()}
                    for j, side in enumerate(("engine", "original"))
                },
            }
            for i, (article, prompt, ours, theirs) in enumerate(rows)
        ]


def summarize(sides: Sides, asked: Asked, articles: Sequence[Article], scorer: Any, progress: Progress) -> Found:
    """Both sides' summaries of `articles`, judged by `scorer`."""
    from allotrope.eval.divergence import first_divergences
    from allotrope.eval.writing import by_engine, by_original, spelled

    chat = asked.prompt == "chat" or (asked.prompt == "auto" and sides.tokenizer.has_chat_template)
    room = _room(sides, asked, chat=chat)
    write = chat_prompt if chat else plain_prompt
    prompts = [write(sides.tokenizer, article.text, room) for article in articles]
    ids = [prompt.ids for prompt in prompts]
    with progress(2 * len(ids), "summarizing") as shown:
        limits = [asked.max_output] * len(ids)
        ours = by_engine(sides.opened, ids, limits, shown.advance)
        theirs = by_original(sides.original, ids, limits, sides.stops, batch=asked.batch_size, done=shown.advance)
    texts = tuple(
        [spelled(sides.tokenizer, asking, said) for asking, said in zip(ids, side.ids, strict=True)]
        for side in (ours, theirs)
    )
    references = [article.reference for article in articles]
    scores = tuple(rouge.score(scorer, references, side) for side in texts)
    pairs = {name: compare(scores[0][name], scores[1][name], seed=asked.seed) for name in rouge.MEASURES}
    names = [article.id for article in articles]
    with progress(len(ids), "judging differences") as shown:
        apart = first_divergences(sides, names, ids, ours.ids, theirs.ids, shown.advance)
    return Found(
        asked, articles, prompts, chat, room, ours, theirs, (texts[0], texts[1]), (scores[0], scores[1]), pairs, apart
    )


def _room(sides: Sides, asked: Asked, *, chat: bool) -> int:
    """How many tokens a prompt may have."""
    if chat and not sides.tokenizer.has_chat_template:
        raise UsageError("--prompt is chat, and the engine has no chat template", remedy="leave it out")
    room, least = sides.context - asked.max_output, least_room(sides.tokenizer, chat=chat)
    if room < least:
        raise UsageError(
            f"{asked.max_output} new tokens leave {max(room, 0)} of {sides.context} for the article, and what is "
            f"asked about it takes {least}",
            where=str(sides.opened.engine.path),
            remedy="lower --max-output, or build with a larger --max-len",
        )
    if asked.max_input is None:
        return room
    if not least <= asked.max_input <= room:
        raise UsageError(f"--max-input is {asked.max_input}", remedy=f"give a number from {least} to {room}")
    return asked.max_input


def read_articles(asked: Asked, said: Callable[[str], None]) -> list[Article]:
    """The articles, before an engine is opened, or even built; `said` hears of those that are left out."""
    return read(asked.data, asked.examples, said)
