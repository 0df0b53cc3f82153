"""Digests: BLAKE2b with 32 bytes, in hexadecimal. They find accidents and tampering with one file, not forgers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

CHUNK = 8 * 2**20
LENGTH = 64  # hexadecimal digits


class Digest:
    """A digest being taken, piece by piece."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=LENGTH // 2)

    def update(self, data: bytes | memoryview) -> None:
        """Take in more bytes."""
        self._state.update(data)

    def text(self) -> str:
        """The digest so far."""
        return self._state.hexdigest()


def of_bytes(data: bytes | memoryview) -> str:
    """The digest of bytes in memory."""
    digest = Digest()
    digest.update(data)
    return digest.text()


def of_span(path: Path, start: int, size: int) -> str:
    """The digest of `size` bytes of a file from `start` (fewer if it ends before), in bounded memory."""
    digest = Digest()
    for piece in _pieces(path, start, size):
        digest.update(piece)
    return digest.text()


def of_file(path: Path) -> str:
    """The digest of a whole file, in bounded memory."""
    return of_span(path, 0, path.stat().st_size)


def _pieces(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size > 0 and (piece := file.read(min(CHUNK, size))):
            size -= len(piece)
            yield piece
