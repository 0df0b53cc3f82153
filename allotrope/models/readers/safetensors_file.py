"""One safetensors file: its header checked strictly, its tensors read one at a time.

Nothing is mapped or kept: each read fills an array of its own, so memory holds what is in use and no more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo
from allotrope.models.dtypes import DTYPES
from allotrope.models.readers.safetensors_header import MAX_HEADER, Entry, parse_header, shown

_PIECE = 1 << 30  # Linux reads at most 2 GiB in one call


@dataclass(frozen=True)
class SafetensorsFile:
    """An opened file. `stamp` is its size and time of change, which must still hold when a tensor is read."""

    path: Path
    header: bytes
    stamp: tuple[int, int]
    entries: Mapping[str, Entry]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's shape and dtype."""
        return {name: entry.info for name, entry in self.entries.items()}

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; bf16 as uint16."""
        entry = self.entries[name]
        return self._fill(entry, 0, entry.info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows `start` to `stop` of the first axis."""
        entry = self.entries[name]
        shape = entry.info.shape
        check_rows(name, shape, start, stop)
        row = entry.info.nbytes // shape[0] if shape[0] else 0
        return self._fill(entry, start * row, (stop - start, *shape[1:]))

    def _fill(self, entry: Entry, skip: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        array = np.empty(shape, DTYPES[entry.info.dtype])
        view = array.reshape(-1).view(np.uint8).data
        at = 8 + len(self.header) + entry.begin + skip
        fd = _open(self.path)
        try:
            if _stamp(fd) != self.stamp:
                raise CheckpointError("changed while it was being read", where=str(self.path))
            done = 0
            while done < len(view):
                got = os.preadv(fd, [view[done : done + _PIECE]], at + done)
                if not got:
                    raise CheckpointError("truncated while it was being read", where=str(self.path))
                done += got
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        finally:
            os.close(fd)
        return array


def open_file(path: Path) -> SafetensorsFile:
    """Read and check the header; the data is looked at only when asked for."""
    where = str(path)
    fd = _open(path)
    try:
        size, _ = stamp = _stamp(fd)
        if size < 8:
            raise CheckpointError(f"truncated: {size} bytes are too few for a safetensors file", where=where)
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
        if length > MAX_HEADER:
            raise CheckpointError(f"the header's length is {length}, over the bound of {MAX_HEADER}", where=where)
        if length > size - 8:
            raise CheckpointError(
                f"truncated: the header's length is {length}, but the file has {size} bytes", where=where
            )
        header = os.pread(fd, length, 8)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=where) from error
    finally:
        os.close(fd)
    if len(header) != length:
        raise CheckpointError("truncated while it was being read", where=where)
    return SafetensorsFile(path, header, stamp, parse_header(header, size - 8 - length, where))


def check_rows(name: str, shape: tuple[int, ...], start: int, stop: int) -> None:
    """A range of rows must lie inside the tensor; anything else is a caller's mistake."""
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"tensor {shown(name)} of shape {list(shape)} has no rows {start}:{stop}")


def _open(path: Path) -> int:
    """A descriptor of a regular file; a pipe or a device would hang or never end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError("not a regular file", where=str(path))
    return fd


def _stamp(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_size, facts.st_mtime_ns
