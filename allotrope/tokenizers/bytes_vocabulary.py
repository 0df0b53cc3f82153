"""The byte vocabulary of `random:` shapes: an id is a byte plus three."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from allotrope.errors import TokenizerError
from allotrope.tokenizers.files import MIB, read_json

FIRST_BYTE = 3
SPECIALS = {"<pad>": 0, "<bos>": 1, "<eos>": 2}


class ByteVocabulary:
    """256 bytes from id 3 on; 0 is padding, 1 begins and 2 ends a text; any other id shows as ⟨id⟩."""

    leading_space = False
    frame = None

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def specials(self) -> Mapping[str, int]:
        """Padding, beginning and end. Never parsed from text: every text is bytes."""
        return SPECIALS

    def token_id(self, token: str) -> int | None:
        """The id of a special token; the bytes have no names."""
        return SPECIALS.get(token)

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """The text's UTF-8, each byte moved past the specials."""
        return [byte + FIRST_BYTE for byte in text.encode()]

    def piece(self, token: int) -> bytes:
        """The byte; ⟨id⟩ for ids that a random model may well sample but no text has."""
        if FIRST_BYTE <= token < FIRST_BYTE + 256:
            return bytes((token - FIRST_BYTE,))
        named = {number: name for name, number in SPECIALS.items()}.get(token, f"⟨{token}⟩")
        return named.encode()


def load(path: Path) -> ByteVocabulary:
    """Read `bytes.json`: {"vocab_size": N}."""
    size = read_json(path, MIB).get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 256 + FIRST_BYTE <= size <= 1 << 22:
        raise TokenizerError(
            f"vocab_size is {size!r}", where=path.name, remedy=f"give a whole number from {256 + FIRST_BYTE}"
        )
    return ByteVocabulary(size)
