"""Ids back to text one at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable


class Detokenizer:
    """Turns ids into text as they come; what has been pushed and flushed equals `decode` of all of them.

    Every id stands for some bytes. They go through an incremental UTF-8 decoder, so a character appears
    with the token that completes it, and bytes that belong to no character become U+FFFD as soon as that is certain.
    """

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool) -> None:
        self._piece = piece
        self._strip_space = strip_space  # true until the text has begun: its first space is the vocabulary's, not ours
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes; often a whole word, sometimes nothing."""
        piece = self._piece(token)
        if not piece:
            return ""
        if self._strip_space:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left when no more ids come: U+FFFD for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)


def join(pieces: Iterable[bytes], *, strip_space: bool) -> str:
    """The text of a whole sequence at once: what a `Detokenizer` gives, without the steps."""
    data = b"".join(pieces)
    return (data.removeprefix(b" ") if strip_space else data).decode("utf-8", "replace")
