"""The few environment variables, read in one place and only when asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from allotrope.errors import UsageError

_asked: ContextVar[Path | None] = ContextVar("cache_dir", default=None)


@contextmanager
def keeping_in(folder: Path | None) -> Iterator[None]:
    """Inside, `cache_dir` is `folder` (`--cache-dir`); None changes nothing."""
    token = _asked.set(folder or _asked.get())
    try:
        yield
    finally:
        _asked.reset(token)


def cache_dir() -> Path:
    """Where built engines, ceilings and timings are kept: `--cache-dir`, ALLOTROPE_CACHE, or the user's cache folder.

    Without a home (a locked-down service), a private folder under the system's temporary one.
    """
    if (asked := _asked.get()) is not None:
        return asked
    chosen = os.environ.get("ALLOTROPE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) if os.environ.get("ALLOTROPE_CACHE") else Path(chosen) / "allotrope"
    try:
        return Path.home() / ".cache" / "allotrope"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"allotrope-{os.getuid()}"


def peers_dir() -> Path:
    """Where the environments of `bench --against` lie: ALLOTROPE_PEERS, or `peers` in the cache's folder."""
    chosen = os.environ.get("ALLOTROPE_PEERS")
    return Path(chosen) if chosen else cache_dir() / "peers"


def for_worker(threads: int, *, own: bool, temporary: Path | None = None) -> dict[str, str]:
    """The environment of a process that is measured with so many threads; `own`: it imports this package.

    What it puts into temporary files goes to `temporary`, if given.
    """
    known = dict(os.environ)
    if not own:
        known = {name: value for name, value in known.items() if not name.startswith("PYTHON")}
    unless_given = {
        # One process: quicker for few requests, and its time is counted as the worker's own.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # would compile itself first; greedy choice does not use it
    }
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return (
        unless_given
        | known
        | counts
        | ({"TMPDIR": str(temporary)} if temporary is not None else {})
        | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    )


def assets() -> Path:
    """Third-party test data: ALLOTROPE_ASSETS, or `../shared/assets` beside the project."""
    chosen = os.environ.get("ALLOTROPE_ASSETS")
    return Path(chosen) if chosen else Path(__file__).parents[2] / "shared" / "assets"


def threads() -> int | None:
    """ALLOTROPE_THREADS: how many CPU threads to use where no `--threads` was given."""
    chosen = os.environ.get("ALLOTROPE_THREADS")
    if not chosen:
        return None
    if not chosen.isdigit() or not 1 <= int(chosen) <= 1024:
        raise UsageError(f"ALLOTROPE_THREADS is {chosen!r}", remedy="give a whole number from 1 to 1024")
    return int(chosen)


def isa() -> str | None:
    """ALLOTROPE_ISA: the instruction set whose native kernels are used, in place of the best that the CPU has."""
    return os.environ.get("ALLOTROPE_ISA") or None
