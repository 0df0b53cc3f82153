"""The sentences of chat_phrases.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Sentences = tuple[str, ...]


@dataclass(frozen=True)
class SmallTalk:
    """Things said that are no question about code, and what may be replied to any of them."""

    said: Sentences
    replies: Sentences


@dataclass(frozen=True)
class Phrases:
    """Everything that is said in a made conversation but the answers about code."""

    systems: Sentences
    endings: Sentences
    openings: Sentences
    showing: Sentences
    questions: dict[str, Sentences]
    small_talk: dict[str, SmallTalk]
    about: Sentences
    topics: dict[str, Sentences]
    reply: str
    reply_about: str


@cache
def phrases() -> Phrases:
    """Read the file once."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    refusals = table["refusals"]
    return Phrases(
        **{key: tuple(table[key]) for key in ("systems", "endings", "openings", "showing")},
        questions={kind: tuple(said) for kind, said in table["questions"].items()},
        small_talk={
            name: SmallTalk(tuple(talk["said"]), tuple(talk["replies"])) for name, talk in table["small_talk"].items()
        },
        about=tuple(refusals["about"]),
        topics={topic: tuple(said) for topic, said in table["topics"].items()},
        reply=refusals["reply"],
        reply_about=refusals["reply_about"],
    )
