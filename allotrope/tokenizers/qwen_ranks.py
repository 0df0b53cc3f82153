"""The first Qwen's file of ranked byte strings (`*.tiktoken`), followed by its special tokens."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import tiktoken

from allotrope.errors import TokenizerError
from allotrope.tokenizers import patterns
from allotrope.tokenizers.cutting import any_of
from allotrope.tokenizers.files import MIB, read_bytes

MAX_BYTES = 32 * MIB
MAX_RANKS = 1_000_000
NAMED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRAS = 205
# Unicode's White_Space, which is what \s means to the library. A run of a million of them overflows its stack.
LONG_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{4096,}")
NEWLINES = re.compile(r"[\r\n]*")


class RankVocabulary:
    """The tiktoken library's merging after NFC; the special ids follow the ranks, however many there are."""

    leading_space = False
    frame = None

    def __init__(self, ranks: dict[bytes, int]) -> None:
        names = (*NAMED, *(f"<|extra_{number}|>" for number in range(EXTRAS)))
        self._specials = {name: len(ranks) + place for place, name in enumerate(names)}
        self._library = tiktoken.Encoding(
            "qwen", pat_str=patterns.QWEN, mergeable_ranks=ranks, special_tokens=self._specials
        )
        self._ranks = ranks
        self._pieces = {rank: piece for piece, rank in ranks.items()}
        self._pieces |= {number: name.encode() for name, number in self._specials.items()}
        self._cut = any_of(self._specials)
        self.size = len(ranks) + len(self._specials)

    @property
    def specials(self) -> Mapping[str, int]:
        """End of text, the two chat marks and 205 spare ones."""
        return self._specials

    def token_id(self, token: str) -> int | None:
        """The id of a special token."""
        return self._specials.get(token)

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """The ids of the text's normal form C."""
        text, ids, begin = unicodedata.normalize("NFC", text), [], 0
        for match in self._cut.finditer(text) if parse_special and self._cut else ():
            ids += self._ordinary(text[begin : match.start()])
            ids.append(self._specials[match[0]])
            begin = match.end()
        return ids + self._ordinary(text[begin:])

    def _ordinary(self, text: str) -> list[int]:
        if not LONG_SPACE.search(text):
            return list(self._library.encode_ordinary(text))
        ids: list[int] = []
        for part, whole in _around_spaces(text):
            ids += (self._one_word if whole else self._library).encode_ordinary(part)
        return ids

    @cached_property
    def _one_word(self) -> tiktoken.Encoding:
        """The same merging, for a stretch that is known to be one word."""
        return tiktoken.Encoding("qwen-word", pat_str=r"[\s\S]+", mergeable_ranks=self._ranks, special_tokens={})

    def piece(self, token: int) -> bytes:
        """The bytes that this id stands for; nothing for an id that no token has."""
        return self._pieces.get(token, b"")


def _around_spaces(text: str) -> Iterator[tuple[str, bool]]:
    """(stretch, whether it is one word): cuts where the pattern itself would cut around a long run of white space.

    Newlines right after punctuation belong to it; then everything up to the last newline is one word; of the rest,
    all but the last character is one, and that last one may begin the next word.
    """
    begin = 0
    for match in LONG_SPACE.finditer(text):
        first, end = match.span()
        if first > begin and unicodedata.category(text[first - 1])[0] not in "LN":
            first = cast(re.Match[str], NEWLINES.match(text, first, end)).end()
        if first > begin:
            yield text[begin:first], False
        lines = 1 + max(text.rfind("\n", first, end), text.rfind("\r", first, end))
        if lines > first:
            yield text[first:lines], True
            first = lines
        begin = end if end == len(text) or first == end else end - 1
        if begin > first:
            yield text[first:begin], True
    if begin < len(text):
        yield text[begin:], False


def load(path: Path) -> RankVocabulary:
    """Read the lines "base64 rank", whose ranks count from 0 without a gap, every single byte among them."""
    data, ranks = read_bytes(path, MAX_BYTES), dict[bytes, int]()
    if (count := data.count(b"\n")) > MAX_RANKS:
        raise TokenizerError(f"{count:,} ranks is more than the {MAX_RANKS:,} allowed", where=path.name)
    for line, text in enumerate(data.splitlines(), 1):
        if not text:
            continue
        try:
            encoded, number = text.split()
            token, rank = base64.b64decode(encoded, validate=True), int(number)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(f'line {line} is not "base64 rank"', where=path.name) from error
        if rank != len(ranks) or token in ranks or not token:
            raise TokenizerError(f"line {line} repeats a token or breaks the count of ranks", where=path.name)
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing:
        raise TokenizerError(f"byte {missing[0]} has no rank, so not every text can be written", where=path.name)
    return RankVocabulary(ranks)
