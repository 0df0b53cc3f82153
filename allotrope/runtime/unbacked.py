"""Memory of which only what is touched is backed, a small page at a time.

numpy asks for huge pages for large arrays. A pool of keys and values is touched here and there, in every layer: two
megabytes at each place would be many times what is used, and reading is no faster by them.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros. MemoryError where there is no room."""
    count = int(np.prod(shape, dtype=np.int64))
    size = count * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, max(size, 1), **_private())
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{size} bytes") from error
    advice = getattr(mmap, "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a system that knows no huge pages
            memory.madvise(advice)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _private() -> dict[str, int]:
    """What makes it this process's own memory, where the system asks for that."""
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
