"""Vocabularies that the `tokenizers` library runs: a tokenizer.json, or GPT-2's vocabulary and merges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from allotrope.errors import TokenizerError
from allotrope.tokenizers.base import Frame
from allotrope.tokenizers.side_files import Added

# A private-use character that stands before a text which continues another, so that no space is put before it.
MARK = "\U0010fffd"


class LibraryVocabulary:
    """One face over the library, with its own decoding: each token's bytes, so that text can stream."""

    def __init__(
        self,
        library: Library,
        to_bytes: Callable[[str], bytes],
        *,
        leading_space: bool,
        added: Iterable[Added],
        where: str,
        raw_added: bool,
        frame: Frame | None = None,
    ) -> None:
        """`frame` is what the file itself puts around a text, where it says anything."""
        library.no_padding()
        library.no_truncation()
        _add(library, added, where)
        self._library, self._to_bytes, self._raw_added = library, to_bytes, raw_added
        tokens = library.get_added_tokens_decoder()
        self._added: Mapping[int, str] = {number: token.content for number, token in tokens.items()}
        self._specials = {token.content: number for number, token in tokens.items() if token.special}
        self._special_ids = frozenset(self._specials.values())
        self.leading_space, self.frame = leading_space, frame
        self.size = 1 + max(max(library.get_vocab(with_added_tokens=True).values(), default=-1), *tokens, -1)
        self._pieces: dict[int, bytes] = {}
        self._plain: Library | None = None
        self._making_plain = threading.Lock()

    @property
    def specials(self) -> Mapping[str, int]:
        """The tokens that text is cut at and that decoding hides."""
        return self._specials

    def token_id(self, token: str) -> int | None:
        """The id of a token written exactly so."""
        return self._library.token_to_id(token)

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """The text's ids. Without `parse_special` the name of a special token is ordinary text."""
        if at_start:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
            if parse_special or self._special_ids.isdisjoint(ids):
                return ids
        library = self._library if parse_special else self._plain_library()
        if at_start or parse_special or not self.leading_space or MARK in text:
            return list(library.encode(text, add_special_tokens=False).ids)
        return list(library.encode(MARK + text, add_special_tokens=False).ids)[1:]

    def _plain_library(self) -> Library:
        # The library's switch is a property of the whole object, and flipping it while another thread encodes
        # would let specials through there. So a second object, made only when a text first needs it.
        with self._making_plain:
            if self._plain is None:
                plain = Library.from_str(self._library.to_str())
                plain.encode_special_tokens = True
                plain.add_tokens([AddedToken(MARK, normalized=False, special=False)])
                self._plain = plain
            return self._plain

    def piece(self, token: int) -> bytes:
        """The bytes that this id stands for; nothing for an id that no token has."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._make_piece(token)
        return known

    def _make_piece(self, token: int) -> bytes:
        if token in self._added:
            content = self._added[token]
            return content.encode() if self._raw_added or content in self._specials else self._to_bytes(content)
        text = self._library.id_to_token(token) if token < self.size else None
        return b"" if text is None else self._to_bytes(text)


def _add(library: Library, added: Iterable[Added], where: str) -> None:
    """Give the library the tokens that the files beside it declare; their ids must be as declared."""
    present = library.get_added_tokens_decoder()
    for token in sorted(added, key=lambda token: -1 if token.id is None else token.id):
        number = library.token_to_id(token.content)
        if number is None and token.id is None:
            raise TokenizerError(
                f"the added token {token.content[:60]!r} is not in the vocabulary and has no id",
                where=where,
                remedy="restore added_tokens.json or tokenizer.json from the publisher's checkpoint",
            )
        known = present.get(-1 if number is None else number)
        if known is not None and known.content == token.content and known.special >= token.special:
            _same_id(token, number, where)
            continue
        entry = AddedToken(
            token.content,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            normalized=token.normalized,
            special=token.special,
        )
        (library.add_special_tokens if token.special else library.add_tokens)([entry])
        _same_id(token, library.token_to_id(token.content), where)


def _same_id(token: Added, number: int | None, where: str) -> None:
    if token.id is not None and token.id != number:
        raise TokenizerError(
            f"the added token {token.content[:60]!r} should have id {token.id} but would get {number}",
            where=where,
            remedy="restore the tokenizer's files from the publisher's checkpoint",
        )
