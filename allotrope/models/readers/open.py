"""From a ref to a checkpoint: which reader a folder is for, or what to give instead."""

from __future__ import annotations

import re
from pathlib import Path

from allotrope.errors import CheckpointError, UsageError
from allotrope.models.checkpoint import RANDOM, Checkpoint
from allotrope.models.readers import hf_folder, meta_folder, pickled
from allotrope.models.readers.random_weights import open_random

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_checkpoint(ref: str | Path, *, allow_pickle: bool = False, seed: int = 0) -> Checkpoint:
    """Open the checkpoint that `ref` names, reading headers only. `seed` is for `random:SHAPE`."""
    text = str(ref)
    if text.startswith(RANDOM):
        return open_random(text.removeprefix(RANDOM), seed)
    folder = _folder(text)
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".safetensors") for name in names) or hf_folder.INDEX in names:
        return hf_folder.open_folder(folder)
    if "params.json" in names and any(re.fullmatch(meta_folder.SHARDS, name) for name in names):
        return meta_folder.open_folder(folder, allow_pickle)
    if any(name.endswith(pickled.SUFFIXES) for name in names) or pickled.INDEX in names:
        return pickled.open_folder(folder, allow_pickle)
    raise _no_weights(folder, names)


def _folder(text: str) -> Path:
    """The existing folder that a ref names, or an error that says what to give instead."""
    path = Path(text)
    try:
        if text and path.is_dir():
            return path.resolve()
        exists = bool(text) and path.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder closed to us
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{text[:100]!r} is no usable path: {why}") from None
    text = text if text.isprintable() else repr(text)
    if exists:
        raise UsageError("is a file, not a checkpoint", where=text, remedy="give the folder that holds it")
    if _HUB_NAME.fullmatch(text) and not text.startswith(("./", "../")):
        local = text.partition("/")[2]
        raise UsageError(
            "no such folder, and nothing is downloaded unasked",
            where=text,
            remedy=f"if it is a Hugging Face name, run: hf download {text} --local-dir {local}",
        )
    raise UsageError(
        "no such folder", where=text, remedy="a checkpoint is a folder in Hugging Face layout, or random:SHAPE"
    )


def _no_weights(folder: Path, names: set[str]) -> CheckpointError:
    """Why a folder is no checkpoint, said of the kinds of folder that people give by mistake."""
    where = str(folder)
    if "engine.json" in names:
        return CheckpointError(
            "is an engine, not a checkpoint", where=where, remedy="give the checkpoint that it was built from"
        )
    if any(name.endswith(".gguf") for name in names):
        return CheckpointError(
            "holds GGUF files, which are not read", where=where, remedy="give the model's safetensors checkpoint"
        )
    if "snapshots" in names and "blobs" in names:
        return CheckpointError(
            "is a download cache, not a checkpoint", where=where, remedy="give one of the folders in its snapshots/"
        )
    return CheckpointError("no weights (*.safetensors) in this folder", where=where, remedy="download them again")
