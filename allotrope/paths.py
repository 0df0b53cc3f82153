"""Which files belong to a checkpoint: those in its folder, and what Hugging Face's download cache links there."""

from __future__ import annotations

from pathlib import Path


def outside(path: Path) -> Path | None:
    """Where the file `path` really lies if that is not its own folder, else None. It must exist (OSError if not).

    In the download cache `snapshots/<revision>/<file>` is a link to `../../blobs/<hash>`, which is no way out.
    """
    real, home = path.resolve(strict=True), path.parent.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    return None if real.parent in (home, blobs) else real
