"""Cutting text at the tokens that stand for themselves, for vocabularies whose library does not do it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from allotrope.tokenizers.side_files import Added


def any_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    """A pattern for the tokens, the longest first; None for none of them."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


class Cutter:
    """Splits a text into ordinary stretches and added tokens, minding each token's flags."""

    def __init__(self, added: Iterable[Added]) -> None:
        self._tokens = {token.content: token for token in added if token.content}
        self._all = any_of(self._tokens)
        self._not_special = any_of([token.content for token in self._tokens.values() if not token.special])

    def split(self, text: str, *, parse_special: bool) -> Iterator[tuple[int, str, bool]]:
        """(offset, stretch, is a token); empty stretches are left out."""
        pattern = self._all if parse_special else self._not_special
        begin = 0
        for match in pattern.finditer(text) if pattern else ():
            token = self._tokens[match[0]]
            if token.single_word and _inside_word(text, match.start(), match.end()):
                continue
            if match.start() < begin:  # the stripping of the token before has eaten into this one
                continue
            before = text[begin : match.start()]
            before = before.rstrip() if token.lstrip else before
            if before:
                yield begin, before, False
            yield match.start(), match[0], True
            begin = match.end()
            while token.rstrip and begin < len(text) and text[begin].isspace():
                begin += 1
        if begin < len(text):
            yield begin, text[begin:], False


def _inside_word(text: str, begin: int, end: int) -> bool:
    def is_word(char: str) -> bool:
        return char.isalnum() or char == "_"

    return (begin > 0 and is_word(text[begin - 1])) or (end < len(text) and is_word(text[end]))
