"""What a peer reads: made of the exported checkpoint by the peer's own Python, once, and kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from allotrope.bench.catalogue import Peer
from allotrope.bench.exported import complete, facts_of, finish
from allotrope.bench.workers import Worker


def converted(
    peer: Peer, form: str, source: Path, python: Path, threads: int, said: Callable[[str], None]
) -> tuple[Path, float | None]:
    """The folder that the peer opens, and the seconds that converting took, now or once; WorkerFailed if it cannot."""
    if peer.converter is None:
        return source, None
    folder = source.parent / f"{peer.name}-{form}"
    if not complete(folder):
        said(f"converting for {peer.name}, {form}")
        fresh = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        began = time.perf_counter()
        worker = Worker(f"{peer.name}'s converter", python, peer.converter, threads=threads)
        try:
            worker.ask("convert", source=str(source), target=str(fresh), form=form)
            finish(fresh, folder, {"seconds": time.perf_counter() - began})
        finally:
            worker.kill()
            shutil.rmtree(fresh, ignore_errors=True)
    return folder, float(facts_of(folder)["seconds"])


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
