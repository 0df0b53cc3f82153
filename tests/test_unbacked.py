"""Memory of which only what is touched is backed."""

from __future__ import annotations

import psutil
import pytest

from allotrope.runtime import unbacked

MB = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def test_only_what_is_touched_is_backed() -> None:
    """Of 256 MB the 20 that are written to, and at most a huge page more at either end."""
    before = resident()
    pool = unbacked.empty(256 * MB)
    assert resident() - before < 4 * MB
    pool[: 20 * MB] = 1
    assert 19 * MB < resident() - before < 26 * MB
    assert pool.flags.writeable and pool[20 * MB - 1] == 1 and not pool[20 * MB :: MB].any()
    del pool
    assert resident() - before < 4 * MB


def test_what_there_is_no_room_for() -> None:
    with pytest.raises(MemoryError):
        unbacked.empty(1 << 60)
    assert unbacked.empty(0).shape == (0,)
