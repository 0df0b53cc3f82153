"""What a peer reads: made of the exported checkpoint by the peer's own Python, once, and kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allotrope.bench.catalogue import Peer, installed
from allotrope.bench.exported import complete, facts_of, once
from allotrope.bench.workers import Worker, WorkerFailed
from allotrope.units import bytes_text


def converted(
    peer: Peer, form: str, source: Path, python: Path, threads: int, said: Callable[[str], None]
) -> tuple[Path, float | None]:
    """The folder that the peer opens, and the seconds that converting took, now or once; WorkerFailed if it cannot."""
    converter = peer.converter
    if converter is None:
        return source, None
    folder, by = source.parent / f"{peer.name}-{form}", installed(peer, python)

    def there() -> bool:
        return complete(folder) and facts_of(folder).get("by", by) == by

    def fill(fresh: Path) -> dict[str, Any]:
        said(f"converting for {peer.name}, {form}")
        worker = f"{peer.name}'s converter", python, converter
        return {"by": by, "seconds": _convert(worker, threads, source, fresh, form)}

    once(folder, there, fill, said)
    return folder, float(facts_of(folder)["seconds"])


def _convert(named: tuple[str, Path, str], threads: int, source: Path, fresh: Path, form: str) -> float:
    """Seconds that it took."""
    # Some leave a whole second model in the temporary folder, which may be small: theirs is beside the result.
    passing = fresh / ".passing"
    passing.mkdir()
    began = time.perf_counter()
    worker = Worker(*named, threads=threads, temporary=passing)
    try:
        worker.ask("convert", source=str(source), target=str(fresh), form=form)
    except WorkerFailed as failed:
        raise _short_of_disk(failed, fresh, source) from failed
    finally:
        worker.kill()
        shutil.rmtree(passing, ignore_errors=True)
    return time.perf_counter() - began


def _short_of_disk(failed: WorkerFailed, fresh: Path, source: Path) -> WorkerFailed:
    """The failure; with what is left on the disk where that is no room for another model (libraries seldom say so)."""
    left, model = shutil.disk_usage(fresh).free, size(source)
    if left >= model:
        return failed
    return WorkerFailed(f"{failed} ({bytes_text(left)} are left on the disk, the model has {bytes_text(model)})")


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
