"""Writing an engine folder: weights streamed in bounded memory, digests taken on the way, engine.json last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from allotrope.artifact import atomic, digests, layout, manifest
from allotrope.artifact.engine import TOKENIZER, Engine
from allotrope.artifact.manifest import FileFacts, Manifest
from allotrope.artifact.plan import Plan
from allotrope.errors import BuildError
from allotrope.ops.packing import RawArray

Pieces = Callable[[str], Iterable[RawArray]]
"""`pieces(name)` yields packed weight `name` in order, in pieces of whatever size, already in its stored dtype."""


@contextmanager
def writing(target: Path) -> Iterator[EngineWriter]:
    """A writer for `target`, which becomes an engine when the block ends well and `finish` was called."""
    try:
        with atomic.folder(target, replaces=manifest.FILE) as temporary:
            writer = EngineWriter(temporary)
            yield writer
            if not writer.finished:
                raise BuildError("was left before it was finished", where=str(target))
    except OSError as error:
        what = error.strerror or str(error)
        raise BuildError(
            f"cannot be written: {what}", where=str(target), remedy="any engine that was there is as it was"
        ) from error


class EngineWriter:
    """Writes the parts of one engine: `weights`, `tokenizer`, then `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = False
        self._files: dict[str, FileFacts] = {}

    def weights(self, plan: Plan, pieces: Pieces, done: Callable[[int], None] = lambda nbytes: None) -> None:
        """Write every packed weight of `plan`; `done` hears of the bytes written."""
        (self.folder / layout.FOLDER).mkdir()
        for shard in layout.shards(plan):
            with (self.folder / shard.path).open("xb", buffering=0) as file:
                _write(file.fileno(), memoryview(shard.header))
                tensors = {
                    entry.name: _tensor(file.fileno(), entry, pieces(entry.name), done) for entry in shard.entries
                }
                os.fsync(file.fileno())
            self._files[shard.path] = FileFacts(shard.nbytes, digests.of_bytes(shard.header), tensors)

    def tokenizer(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write the tokenizer's files under their names."""
        (self.folder / TOKENIZER).mkdir()
        for name, content in files:
            self.file(f"{TOKENIZER}/{name}", content)

    def file(self, name: str, content: bytes) -> None:
        """Write one more file."""
        atomic.write_file(self.folder / name, content)
        self._files[name] = FileFacts(len(content), digests.of_bytes(content), {})

    def preview(self, described: Manifest) -> Engine:
        """The engine as written so far, to be run before it may be called one."""
        return Engine(self.folder, replace(described, files=self._files))

    def finish(self, described: Manifest) -> Manifest:
        """Write engine.json, whose `files` are what was written here."""
        whole = replace(described, files=self._files)
        atomic.write_file(self.folder / manifest.FILE, whole.to_bytes())
        self.finished = True
        return whole


def _tensor(handle: int, entry: layout.Entry, pieces: Iterable[RawArray], done: Callable[[int], None]) -> str:
    digest, left = digests.Digest(), entry.nbytes
    carrier = np.dtype(layout.STORED[entry.dtype][1])
    for piece in pieces:
        if piece.dtype != carrier or piece.nbytes > left:
            raise BuildError(f"weight {entry.name} does not come out as planned ({piece.dtype}, {piece.shape})")
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        digest.update(data)
        _write(handle, data)
        left -= len(data)
        done(len(data))
    if left:
        raise BuildError(f"weight {entry.name} is {left} bytes short of its plan")
    return digest.text()


def _write(handle: int, data: memoryview) -> None:
    """Write all of it: one call may take less than it is given."""
    while data:
        data = data[os.write(handle, data) :]
