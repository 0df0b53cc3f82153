"""Memory of which only what is touched is backed."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from allotrope.runtime import unbacked


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_only_what_is_touched_is_backed() -> None:
    """A page here and there costs a page: not the two megabytes around it."""
    before = resident()
    pool = unbacked.empty((64, 1 << 20), np.float32)  # 256 MiB
    assert resident() - before < 1 << 22
    pool[:, 0] = 1
    assert resident() - before < 1 << 23
    assert pool.dtype == np.float32 and pool.flags.writeable and not pool[:, 1].any()
    del pool
    assert resident() - before < 1 << 22


def test_what_there_is_no_room_for() -> None:
    with pytest.raises(MemoryError):
        unbacked.empty((1 << 60,), np.uint8)
    assert unbacked.empty((0, 3), np.uint8).shape == (0, 3)
