"""Building engines: the only place that decides. Importing this loads nothing; the first call does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allotrope.build.builder import Built, Progress


def build(
    ref: str,
    out: Path | str,
    *,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Built:
    """Build the checkpoint `ref` into the engine folder `out`; options are those of `BuildOptions`.

    `said` hears how the weights will be stored before any is read, where a format was asked for.
    """
    from allotrope.build import builder
    from allotrope.build.options import BuildOptions

    return builder.build(ref, out, BuildOptions.of(**options), progress or builder.silent, said)


def cached(ref: str, *, progress: Progress | None = None, **options: Any) -> Path:
    """The engine folder of the checkpoint `ref`, built if it is not yet kept."""
    from allotrope.build import builder, cache
    from allotrope.build.options import BuildOptions

    return cache.cached(ref, BuildOptions.of(**options), progress or builder.silent)
