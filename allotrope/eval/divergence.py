"""Where two sides' greedy texts part, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from allotrope.eval.sides import Sides
from allotrope.ops import check
from allotrope.verify.oracle import LOGITS, Oracle

Ids = Sequence[int]


@dataclass(frozen=True)
class Divergence:
    """The first token in which two texts differ; None for a text that had ended.

    `margin` is how much the truth (the original in a finer precision, given the text so far) prefers one of the two to
    the other, in logits; `floor` how far the original's own rounding moves a logit there. `explained`: the margin is
    no more than rounding may move two logits. All three are None where formats change the logits by design.
    """

    example: str
    position: int
    engine: int | None
    original: int | None
    margin: float | None = None
    floor: float | None = None
    explained: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def first_divergences(
    sides: Sides,
    names: Sequence[str],
    prompts: Sequence[Ids],
    ours: Sequence[Ids],
    theirs: Sequence[Ids],
    done: Callable[[], object] = lambda: None,
) -> list[Divergence]:
    """Each pair of texts that differ, judged where the engine has nothing but rounding to differ by."""
    judges = None
    found = []
    for name, prompt, mine, other in zip(names, prompts, ours, theirs, strict=True):
        if tuple(mine) != tuple(other):
            one = _first(name, mine, other)
            if not sides.quantised and one.engine is not None and one.original is not None:
                judges = judges or sides.judges()
                one = _judged(one, judges, prompt, mine[: one.position], sides.opened.engine.manifest.dtype)
            found.append(one)
        done()
    return found


def _first(name: str, mine: Ids, other: Ids) -> Divergence:
    place = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), min(len(mine), len(other)))
    engine, original = (text[place] if place < len(text) else None for text in (mine, other))
    return Divergence(name, place, engine, original)


def _judged(one: Divergence, judges: tuple[Oracle, Oracle], prompt: Ids, said: Ids, dtype: str) -> Divergence:
    truth, same = (_next_logits(judge, prompt, said) for judge in judges)
    margin = abs(float(truth[one.engine].double() - truth[one.original].double()))
    return replace(
        one,
        margin=margin,
        floor=check.compare(same, truth).max_abs,
        explained=check.choice_within(margin, same, truth, dtype),
    )


def _next_logits(judge: Oracle, prompt: Ids, said: Ids) -> Any:
    """The logits of what comes after the text so far."""
    if judge.by_longest:  # how far the text had come when a token was computed matters
        return judge.follow(prompt, said)[-1]
    return judge.walk([[*prompt, *said]], {})[LOGITS][-1]
