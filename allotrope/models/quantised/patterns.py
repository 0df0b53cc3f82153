"""Which modules an entry of a config's ignore list or targets names.

An entry is a module's name, or a regular expression behind `re:`. It comes from a file that anybody may have written,
so only the part of the language that such files use is taken, and matched in steps that grow with the expression
times the name: letters, digits, `_ / -`, `.`, `\\.`, `\\d`, `\\d+`, `.*`, `^`, `$` and alternatives, `(q|k|v)`.
"""

from __future__ import annotations

import re

REGEX = "re:"
_LONGEST = 300
_TOKEN = re.compile(r"\.\*|\\d\+?|\\\.|\((?:\?:)?[\w.|-]+\)|[\w/.^$-]", re.ASCII)


def problem(entry: str) -> str | None:
    """Why this entry cannot be taken, or None."""
    if len(entry) > _LONGEST:
        return f"an entry has at most {_LONGEST} characters"
    if not entry.startswith(REGEX):
        return None
    text = entry.removeprefix(REGEX)
    if "".join(_TOKEN.findall(text)) != text:
        return r"an expression is made of names, '.', '.*', '\d+', '\.', '^', '$' and alternatives in brackets"
    return None


def matches(entry: str, module: str, *, below: bool) -> bool:
    """Whether the entry names the module; `below`: a plain name also means every module inside one of that name."""
    if entry.startswith(REGEX):
        ends = {0}
        for token in _TOKEN.findall(entry.removeprefix(REGEX)):
            ends = _step(token, module, ends)
        return bool(ends)
    return f".{entry}." in f".{module}." if below else entry == module


def _step(token: str, name: str, starts: set[int]) -> set[int]:
    """Where in the name a token can end, beginning at any of `starts`."""
    if token == ".*":
        return set(range(min(starts), len(name) + 1)) if starts else set()
    if token == "^":
        return starts & {0}
    if token == "$":
        return starts & {len(name)}
    if token.startswith("("):
        alternatives = token[1:-1].removeprefix("?:").split("|")
        return {at + len(word) for word in alternatives for at in starts if _begins(name, at, word)}
    ends = {at + 1 for at in starts if at < len(name) and _is(name[at], token)}
    while token == r"\d+" and (more := {at + 1 for at in ends if at < len(name) and name[at].isdecimal()} - ends):
        ends |= more
    return ends


def _begins(name: str, at: int, word: str) -> bool:
    part = name[at : at + len(word)]
    return len(part) == len(word) and all(wanted in (".", char) for wanted, char in zip(word, part, strict=True))


def _is(char: str, token: str) -> bool:
    if token.startswith(r"\d"):
        return char.isdecimal()
    return token == "." or char == token[-1]
