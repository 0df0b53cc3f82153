"""Weights that every step reads settle in huge pages of the process's own, a few before each step.

A file is mapped in small pages, and who reads gigabytes looks up an address for every 4 KB: on a virtual machine that
can cost half of what memory gives. To copy all at once would be paid for by the first token. So weights stay where they
are until a step has been computed, and then move as time allows; what has moved is let go of in the file's mapping, so
none is in memory twice.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from allotrope.hw.detect import available_memory
from allotrope.runtime import unbacked

SHARE = 0.5  # of the steps' time that moving may take, until all have moved
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LINE = 64
_ROOM = 2  # times what moves must be available: a file's pages can be given back when memory is short, these cannot


class Settling:
    """Moves weights of one program, by the core's slots. `places` says where each lies by now: address and bytes."""

    def __init__(self, core: Any, program: Any, weights: Mapping[int, npt.NDArray[Any]], threads: int) -> None:
        self._core, self._program, self._threads = core, program, threads
        self.places = {slot: (_address(array), array.nbytes) for slot, array in weights.items()}
        mapped = [slot for slot, array in weights.items() if is_mapped(array)]
        size = sum(_padded(self.places[slot][1]) for slot in mapped)
        self._left: deque[int] = deque(mapped if size and huge_pages() and _ROOM * size < available_memory() else ())
        self._region: npt.NDArray[np.uint8] | None = None
        self._size, self._at, self._spent_s = size, 0, 0.0

    @property
    def left(self) -> int:
        """How many weights have not moved and will."""
        return len(self._left)

    @property
    def settled(self) -> bool:
        """Whether all that can move has, so that nothing of the mapped files is read by every step."""
        return self._region is not None and not self._left

    def go_on(self, stepped_s: float) -> None:
        """Move some, now that steps have taken so much time in all."""
        while self._left and self._spent_s < SHARE * stepped_s:
            slot = self._left.popleft()
            source, size = self.places[slot]
            if self._at == 0:
                self._at = self._begin()
            if not self._at:
                self._left.clear()
                return
            self._spent_s += self._core.move(source, self._at, size, self._threads)
            self._program.moved(slot, self._at)
            self.places[slot] = (self._at, size)
            self._at += _padded(size)

    def close(self) -> None:
        """Let go of the program and of all that has moved."""
        self._left.clear()
        self._core = self._program = self._region = None

    def _begin(self) -> int:
        """Where the room for all begins; 0 if there is none."""
        try:
            self._region = unbacked.empty(self._size)
        except MemoryError:
            return 0
        return _address(self._region)


def huge_pages() -> bool:
    """Whether the system gives huge pages to whoever asks."""
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in _HUGE_PAGES.read_text(encoding="utf-8")
    except OSError:
        return False


def is_mapped(array: npt.NDArray[Any]) -> bool:
    """Whether it lies in a mapped file, and not in memory that somebody wrote it to."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _padded(size: int) -> int:
    return -(-size // _LINE) * _LINE
