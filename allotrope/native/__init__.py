"""The native core: kernels in C++, compiled for several instruction sets, and the threads that run them.

The extension `_core` lies beside this file: `make native` puts it there, and so does a wheel that was built where
there is a compiler. Without it everything else works, with torch's tactics.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from allotrope import settings
from allotrope.errors import UsageError
from allotrope.hw import cores

MOST_THREADS = 64


@dataclass(frozen=True)
class Found:
    """What there is of the core: the extension and the instruction set chosen, or why there is none."""

    core: Any = None
    isa: str = ""
    why: str = ""  # why there is no core, or why this instruction set was chosen
    lacking: dict[str, str] = field(default_factory=dict)  # instruction set → why it cannot run here
    kernels: frozenset[str] = frozenset()


@cache
def find() -> Found:
    """The core, with the best instruction set of this machine or the one that ALLOTROPE_ISA names."""
    try:
        core = importlib.import_module("allotrope.native._core")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        return Found(
            why="it is not built; with a C++20 compiler: make native, or pip install anew"
            if missing
            else f"it does not load: {error}"
        )
    if not hasattr(core, "fetches_near"):  # what it came to have last
        return Found(why="it is of an older version; make native, or pip install anew")
    asked = settings.isa()
    lacking = dict(core.isas(asked or ""))
    able = [name for name, lacks in lacking.items() if not lacks]
    if asked is None:
        return Found(core, able[-1], "the best that this CPU has", lacking, frozenset(core.kernels(able[-1])))
    if asked not in able:
        reason = lacking.get(asked) or f"there are no kernels for {asked}"
        raise UsageError(f"ALLOTROPE_ISA is {asked!r}: {reason}", remedy=f"choose one of {', '.join(able)}")
    return Found(core, asked, "ALLOTROPE_ISA asks for it", lacking, frozenset(core.kernels(asked)))


def identity() -> dict[str, str] | None:
    """Which core computes here: the digest of what it was made of, and the instruction set; None without one."""
    found = find()
    return None if found.core is None else {"digest": str(found.core.digest), "isa": found.isa}


def why_not(*kernels: str) -> str | None:
    """Why there is no native core here, or none with these kernels; None if there is."""
    found = find()
    if found.core is None:
        return f"there is no native core: {found.why}"
    missing = [kernel for kernel in kernels if kernel not in found.kernels]
    return f"the native core is of another version, without {missing[0]}: make native" if missing else None


class _Team:
    """How many threads kernels run on where nobody says otherwise, and what says so."""

    def __init__(self) -> None:
        self.count, self.why = 0, ""


_TEAM = _Team()
_OWN: ContextVar[int] = ContextVar("threads")


def threads() -> int:
    """How many threads a kernel runs on: a `team`'s, what was set, ALLOTROPE_THREADS, or the CPUs that we may use."""
    if own := _OWN.get(0):
        return own
    if not _TEAM.count:
        asked = settings.threads()
        found = cores.usable() if asked is None else cores.Cores(asked, "ALLOTROPE_THREADS asks for it")
        _TEAM.count, _TEAM.why = _bounded(found.count, found.why)
    return _TEAM.count


def _bounded(count: int, why: str) -> tuple[int, str]:
    """The core has no more than so many."""
    return (count, why) if count <= MOST_THREADS else (MOST_THREADS, f"{why}, and the native core takes no more")


def why_threads() -> str:
    """What says that there are so many."""
    threads()
    return _TEAM.why


def set_threads(count: int | None) -> None:
    """From now on so many; None changes nothing."""
    if count is not None:
        _TEAM.count, _TEAM.why = _bounded(count, f"{count} were asked for")


@contextmanager
def team(count: int) -> Iterator[None]:
    """So many in here, whatever is set meanwhile: scratch memory that was sized for some must be used by no more."""
    before = _OWN.set(count)
    try:
        yield
    finally:
        _OWN.reset(before)
