"""Whether an engine has been proven to be its model; what has not been stands in red beside every speed."""

from __future__ import annotations

from dataclasses import dataclass

from allotrope.report.sources import Subject
from allotrope.report.value import ResultError, Value

PROVEN, FAILED, UNPROVEN = "proven", "failed", "unproven"

_MEANS = {
    "identical": (
        "Still the same model",
        "Every block computes what the original computes; every token is the original's.",
    ),
    "within rounding": ("Still the same model", "Every block adds no more error than its number format explains."),
    "close": ("Close to the original", "Not the same numbers, but its distributions are near the original's."),
    "degraded": (
        "Not the same model",
        "It differs from the original by more than rounding explains, and not by little.",
    ),
}


@dataclass(frozen=True)
class Standing:
    """The verdict, and what must be said beside a speed (`alarm`; empty where the engine is proven)."""

    kind: str
    word: str
    headline: str
    means: str
    alarm: str = ""


def judge(subject: Subject) -> Standing:
    """What `verify.json` allows to be said about this engine; a doubt is never in its favour."""
    found = subject.results.get("verify")
    if found is None:
        return _unproven(
            "not verified",
            "Nobody has verified this engine",
            "Whether it is still the same model is not known: it has no verdict.",
            "Not verified: this may be the speed of another model.",
        )
    try:
        return _judge(subject, found)
    except ResultError as error:
        return _unproven(
            "not readable",
            "Its verdict cannot be read",
            f"{error}.",
            "Its verdict cannot be read: this may be the speed of another model.",
        )


def _judge(subject: Subject, found: Value) -> Standing:
    word, passed = found.words("verdict"), found.flag("passed")
    if word is not None and word not in _MEANS:
        raise ResultError(f"{word!r} is no verdict that this version knows", where=f"{found.place}: verdict")
    if word == "degraded" or passed is False:
        required = found.words("required")
        told = f", required: {required}" if required else ""
        headline, means = _MEANS[word or "degraded"]
        failed = f"Verification failed (verdict: {word}{told}): this is not the speed of the same model."
        if passed:
            failed = f"The verdict is {word}: this is not the speed of the same model."
        return Standing(FAILED, word or "failed", "Not the same model", means, failed)
    if subject.digest is None:
        return _unproven(
            "not verified as it is",
            "This engine was changed after it was built",
            "engine.json does not match its own digest, so no verdict is about it.",
            "Changed after it was built: no verdict is about this engine.",
        )
    if found.words("engine_digest") != subject.digest:
        which = "is of another build" if found.words("engine_digest") else "does not say of which build it is"
        return _unproven(
            "out of date",
            "Its verdict is out of date",
            f"The kept verdict ({word or 'none'}) {which}; this engine itself has not been verified.",
            f"Its verdict {which}: verify it again.",
        )
    if word is None:
        return _unproven(
            "incomplete",
            "Its verification is incomplete",
            "Nothing wrong was found, but levels that a verdict needs were left out.",
            "Verified in part only: this may be the speed of another model.",
        )
    headline, means = _MEANS[word]
    return Standing(PROVEN, word, headline, means)


def _unproven(word: str, headline: str, means: str, alarm: str) -> Standing:
    return Standing(UNPROVEN, word, headline, means, alarm)
