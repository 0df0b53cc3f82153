"""Seconds of processors, not of the wall: what a command costs, whoever else uses the machine."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from typing import Any


def cheapest(command: Sequence[str], times: int = 3, **options: Any) -> tuple[float, str]:
    """The least that a command, which must succeed, took of several times, and what it printed last."""
    found, printed = [], ""
    for _ in range(times):
        before = _spent()
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr
        found.append(_spent() - before)
        printed = done.stdout
    return min(found), printed


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
