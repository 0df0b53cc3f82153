"""Sentencepiece's tokenizer.model, with the added tokens that stand beside it.

Where a vocabulary puts a space before a text, "Hello" means " Hello". Around special tokens there are two habits.
The old one (`legacy`) puts the space before every stretch between two specials; the newer one only where the stretch
begins the text. tokenizer_config.json says which; where it is silent the newer one holds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece

from allotrope.errors import TokenizerError
from allotrope.tokenizers import pieces
from allotrope.tokenizers.cutting import Cutter
from allotrope.tokenizers.files import MIB, read_bytes
from allotrope.tokenizers.side_files import Added, SideFiles

MAX_BYTES = 32 * MIB  # Gemma's has 4 MB
# Protocol buffers merge a repeated message: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }.
NO_PREFIX = b"\x1a\x02\x18\x00"
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


class SentencepieceVocabulary:
    """The library's own segmentation; decoding by each piece's bytes, so that text can stream."""

    frame = None

    def __init__(self, model: bytes, added: Iterable[Added], *, legacy: bool, where: str) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=model + NO_PREFIX)
        except (RuntimeError, UnicodeDecodeError) as error:  # the second from the library's own message
            raise TokenizerError("is no sentencepiece model", where=where) from error
        self._legacy, self._lock = legacy, threading.Lock()
        self.leading_space = bool(self._model.normalize("a") != self._bare.normalize("a"))
        self.base_size: int = self._model.get_piece_size()
        try:
            self._names = [str(self._model.id_to_piece(number)) for number in range(self.base_size)]
        except UnicodeDecodeError as error:
            raise TokenizerError("a piece of it is not UTF-8", where=where) from error
        self._texts = self._own_specials() | _numbered(added, self, where)
        tokens = [token for token in self._texts.values() if token.content]
        self._cutter = Cutter(tokens)
        self._ids = {token.content: number for number, token in self._texts.items()}
        self._specials = {token.content: number for number, token in self._texts.items() if token.special}
        self.size = max(self.base_size, 1 + max(self._texts, default=-1))
        self._pieces: dict[int, bytes] = {}

    def _own_specials(self) -> dict[int, Added]:
        """The model's control pieces and its unknown piece."""
        model = self._model
        numbers = [n for n in range(self.base_size) if model.is_control(n) or model.is_unknown(n)]
        return {number: Added(self._names[number], number, special=True) for number in numbers}

    @property
    def specials(self) -> Mapping[str, int]:
        """The tokens that text is cut at and that decoding hides."""
        return self._specials

    @property
    def names(self) -> dict[str, str]:
        """The pieces that the model itself declares to begin and to end a text."""
        ids = {"bos_token": self._model.bos_id(), "eos_token": self._model.eos_id()}
        return {role: self._names[number] for role, number in ids.items() if number >= 0}

    def token_id(self, token: str) -> int | None:
        """The id of a token written exactly so."""
        if token in self._ids:
            return self._ids[token]
        number = int(self._model.piece_to_id(token))
        return number if self._model.id_to_piece(number) == token else None

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """The text's ids; `at_start=False` for a text that continues another one."""
        ids: list[int] = []
        for offset, stretch, is_token in self._cutter.split(text, parse_special=parse_special):
            if is_token:
                ids.append(self._ids[stretch])
            else:
                spaced = self._legacy or (at_start and offset == 0)
                ids.extend((self._model if spaced else self._bare).encode(stretch))
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that this id stands for; nothing for an id that no token has."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._make_piece(token)
        return known

    def _make_piece(self, token: int) -> bytes:
        if token in self._texts:
            return self._texts[token].content.encode()
        if token >= self.base_size:
            return b""
        text = self._names[token]
        return pieces.byte_fallback(text) if self._model.is_byte(token) else text.replace("▁", " ").encode()


def _numbered(added: Iterable[Added], vocabulary: SentencepieceVocabulary, where: str) -> dict[int, Added]:
    """The declared tokens by id: those of the model keep theirs, the others must follow it without a gap."""
    numbered: dict[int, Added] = {}
    model, following = vocabulary._model, vocabulary.base_size
    for token in sorted(added, key=lambda token: -1 if token.id is None else token.id):
        own = int(model.piece_to_id(token.content))
        inside = model.id_to_piece(own) == token.content
        number = own if inside else token.id
        if number is None:
            raise TokenizerError(
                f"the added token {token.content[:60]!r} is not in the vocabulary and has no id",
                where=where,
                remedy="restore added_tokens.json from the publisher's checkpoint",
            )
        replaces = not inside and number < vocabulary.base_size
        expected = own if inside else number if replaces else following
        if token.id not in (None, expected):
            raise TokenizerError(
                f"the added token {token.content[:60]!r} has id {token.id}, but the one that follows is {expected}",
                where=where,
                remedy="an added token is missing; restore the publisher's files",
            )
        following += expected == following
        numbered[expected] = token
    return numbered


def load(path: Path, side: SideFiles, added: Iterable[Added]) -> SentencepieceVocabulary:
    """Read a tokenizer.model, and say so where it is really a list of ranks under that name."""
    data = read_bytes(path, MAX_BYTES)
    if RANK_LINE.match(data):
        raise TokenizerError(
            "is a list of BPE ranks (LLaMA 3's original layout), not a sentencepiece model",
            where=path.name,
            remedy="use the Hugging Face layout, with its tokenizer.json",
        )
    return SentencepieceVocabulary(data, added, legacy=bool(side.legacy), where=path.name)
