"""Questions about a function, and the one answer that its source gives to each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.train.corpus.chat_facts import Facts

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LONGEST_VALUE = 30  # characters of a default value or a decorator worth repeating


@dataclass(frozen=True)
class Question:
    """One thing that may be asked; `weight` evens out answers that are rare in real code.

    How it is put into words is in chat_phrases.toml, by `kind`.
    """

    kind: str
    answer: str
    weight: float
    about: str = ""  # the name that the question is about, if it is about one


def questions(facts: Facts, summary: str, decoys: Sequence[str], rng: random.Random) -> list[Question]:
    """Everything that may be asked about the function; `decoys` are names that other functions call."""
    return [
        Question("summary", summary, 4.0),
        Question("name", f"It is called {facts.name}.", 1.2),
        *_about_parameters(facts, rng),
        *_about_results(facts),
        *_about_body(facts, decoys, rng),
    ]


def _about_parameters(facts: Facts, rng: random.Random) -> Iterator[Question]:
    names, count = facts.parameters, len(facts.parameters)
    if count <= 10:
        plural = "parameter" if count == 1 else "parameters"
        yield Question("count", f"It takes {_NUMBERS[count]} {plural}.", 1.5)
    if count == 0:
        yield Question("names", "It has no parameters.", 1.5)
        return
    listed = f"Its only parameter is {names[0]}." if count == 1 else f"Its parameters are {_listed(names)}."
    yield Question("names", listed, 2.0)
    yield Question("first", f"The first parameter is {names[0]}.", 0.8)
    yield Question("last", f"The last parameter is {names[-1]}.", 0.8)
    takes_self = names[0] == "self"
    answer = "Yes, it is a method: it takes self." if takes_self else "No, it does not take self."
    yield Question("method", answer, 0.3 if takes_self else 0.5)
    known = [(name, value) for name, value in facts.defaults if value is None or len(value) <= _LONGEST_VALUE]
    if known:
        given = [pair for pair in known if pair[1] is not None]
        name, value = rng.choice(given if given and rng.random() < 0.75 else known)
        answer = f"{name} has no default." if value is None else f"The default of {name} is {value}."
        yield Question("default", answer, 0.4 if value is None else 2.0, name)


def _about_results(facts: Facts) -> Iterator[Question]:
    if facts.yields:
        yield Question("returns", "It is a generator: it yields values.", 1.5)
    else:
        answer = "Yes, it returns a value." if facts.returns else "No, it returns nothing."
        yield Question("returns", answer, 0.8 if facts.returns else 1.2)
    if facts.raises:
        yield Question("raises", f"Yes, it raises {_listed(facts.raises)}.", 4.0)
        if not facts.raises_unnamed:
            yield Question("exception", f"It raises {_listed(facts.raises)}.", 3.0)
    elif not facts.raises_unnamed and not facts.defines:
        yield Question("raises", "No, it raises nothing itself.", 0.7)
        yield Question("exception", "It raises nothing itself.", 0.3)


def _about_body(facts: Facts, decoys: Sequence[str], rng: random.Random) -> Iterator[Question]:
    if facts.loops:
        which = " and a ".join(f"{kind} loop" for kind in facts.loops)
        yield Question("loop", f"Yes, it has a {which}.", 3.0)
    elif (
        not facts.comprehends and not facts.defines
    ):  # whether a comprehension is a loop is a matter of taste: not asked
        yield Question("loop", "No, it has no loop.", 0.8)
    others = [name for name in decoys if name not in facts.names]
    calls = [name for name in facts.calls if name != facts.name]
    if calls and (not others or rng.random() < 0.5):
        yield _called(rng.choice(calls), "Yes, it calls {}.")
    elif others:
        yield _called(rng.choice(others), "No, it does not call {}.")
    answer = "Yes, it is async." if facts.is_async else "No, it is an ordinary function."
    yield Question("async", answer, 3.0 if facts.is_async else 0.3)
    if not facts.decorators:
        yield Question("decorator", "No, it has no decorator.", 0.3)
    elif max(map(len, facts.decorators)) <= _LONGEST_VALUE:
        yield Question("decorator", f"Yes, it is decorated with {_listed(facts.decorators)}.", 2.0)


def _called(name: str, answer: str) -> Question:
    return Question("calls", answer.format(name), 1.5, name)


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
