"""What stands in for a tokenizer where a checkpoint came without one: such an engine takes and gives token ids."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.errors import RequestError
from allotrope.tokenizers.base import NONE, Tokenizer


class AbsentVocabulary:
    """No text: reading one is an error in words, and every id stands for nothing."""

    leading_space = False
    frame = None
    size = 0
    specials: Mapping[str, int] = {}

    def token_id(self, token: str) -> int | None:
        """There are no names."""
        return None

    def encode(self, text: str, *, parse_special: bool, at_start: bool = True) -> list[int]:
        """An error, except for the empty text."""
        if not text:
            return []
        raise RequestError(
            "the engine has no tokenizer, so it cannot read text",
            remedy="give token ids, or put a tokenizer into the checkpoint and build again",
        )

    def piece(self, token: int) -> bytes:
        """Nothing."""
        return b""


def absent() -> Tokenizer:
    """A tokenizer for an engine without one."""
    return Tokenizer(AbsentVocabulary(), kind=NONE, bos_id=None, eos_ids=(), pad_id=None)
