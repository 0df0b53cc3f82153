"""Engines built on the way: a checkpoint named where an engine is wanted is built once and kept."""

from __future__ import annotations

import json
from pathlib import Path

from allotrope import __version__, settings
from allotrope.artifact import digests, manifest
from allotrope.artifact.engine import open_engine
from allotrope.build.builder import Progress, build, seeded, silent
from allotrope.build.calibration import text_of
from allotrope.build.fuse import FUSIONS
from allotrope.build.options import BuildOptions
from allotrope.build.tune import Checked
from allotrope.errors import EngineError
from allotrope.hw.detect import detect
from allotrope.hw.fingerprint import fingerprint
from allotrope.models.readers.open import open_checkpoint
from allotrope.ops import registry


def cached(ref: str, options: BuildOptions, progress: Progress = silent, checked: Checked | None = None) -> Path:
    """The engine of `ref` with these options: kept from before, or built now (`checked` as `build` takes it).

    The key holds what could make another engine: the checkpoint's digest, the options, what the calibration
    file says, this machine's fingerprint, our version, and which fusions and tactics there are. A kept engine
    that cannot be opened any more is built anew.
    """
    folder = settings.cache_dir() / "engines" / _key(ref, options)
    if (folder / manifest.FILE).is_file():
        try:
            open_engine(folder)
        except EngineError:
            pass
        else:
            return folder
    return build(ref, folder, options, progress, checked=checked).path


def _key(ref: str, options: BuildOptions) -> str:
    checkpoint = open_checkpoint(seeded(ref, options), allow_pickle=options.allow_pickle)
    facts = fingerprint(detect(options.device))
    asked = dict(options.to_json())
    if options.calibration is not None:
        asked["calibration"] = digests.of_bytes(text_of(options.calibration).encode())
    there = [fusion.name for fusion in FUSIONS]
    there += [f"{op}/{one.name}@{one.version}" for op in registry.names() for one in registry.tactics(op)]
    parts = [__version__, manifest.SCHEMA, checkpoint.digest(), asked, facts.hard, facts.soft, there]
    digest = digests.of_bytes(json.dumps(parts, sort_keys=True).encode())[:24]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in Path(checkpoint.origin).name)
    return f"{name[:60].strip('.-') or 'engine'}-{digest}"
