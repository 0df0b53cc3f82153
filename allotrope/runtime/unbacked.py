"""Memory of which only what is touched is backed, in huge pages where the system has them.

For what is used from its beginning on: of a page of two megabytes that is only begun, the rest is paid for, too. To
touch a small page for the first time takes a virtual machine microseconds; a prompt's keys and values fill thousands.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt


def empty(size: int) -> npt.NDArray[np.uint8]:
    """So many bytes, all zero. MemoryError where there is no room."""
    try:
        memory = mmap.mmap(-1, max(size, 1), **_private())
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{size} bytes") from error
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a system that knows no huge pages
            memory.madvise(advice)
    return np.frombuffer(memory, np.uint8, size)


def _private() -> dict[str, int]:
    """What makes it this process's own memory, where the system asks for that."""
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
