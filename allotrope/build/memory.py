"""How much memory a piece of work took at its peak, above what the process had when it began."""

from __future__ import annotations

import resource
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Begin with `Peak()`, ask with `bytes()`."""

    def __init__(self) -> None:
        self._own_mark = _forget_high_water()
        self._before = _kib("VmRSS") if self._own_mark else _lifetime_peak()

    def bytes(self) -> int:
        """The peak so far. Where Linux cannot reset its mark, only growth over the process's whole life shows."""
        now = _kib("VmHWM") if self._own_mark else _lifetime_peak()
        return max(0, now - self._before) * 1024


def _forget_high_water() -> bool:
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _kib("VmHWM") > 0


def _kib(name: str) -> int:
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def _lifetime_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
