"""What a checkpoint is to everybody above: a config and named tensors, read one at a time.

A checkpoint is named by a *ref*: a folder, a weights file inside one, or `random:SHAPE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from allotrope.errors import CheckpointError, UsageError

RANDOM = "random:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLED = (".bin", ".pt", ".pth")

# tag: the numpy dtype that carries it; bf16 travels as its raw bits.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "fp64": np.dtype("<f8"),
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's shape and dtype tag, known from the header alone."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many values; Python's integers do not overflow."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.count * DTYPES[self.dtype].itemsize


class Checkpoint(Protocol):
    """A config and the tensors that go with it. Nothing is read before it is asked for."""

    @property
    def origin(self) -> str:
        """The ref to open the same checkpoint again: an absolute folder, or `random:SHAPE`."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as published."""

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json; empty where there is none."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor, by the checkpoint's own names."""

    @property
    def folder(self) -> Path | None:
        """Where the tokenizer's files lie; None for `random:SHAPE`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor in memory of its own; bf16 as uint16."""

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows `start` to `stop` of a tensor's first axis."""

    def digest(self) -> str:
        """Changes when headers, sizes or times change; costs no reading of the weights."""


def open_checkpoint(ref: str | Path, *, allow_pickle: bool = False, seed: int = 0) -> Checkpoint:
    """Open the checkpoint that `ref` names, reading headers only. `seed` is for `random:SHAPE`."""
    # Imported here: the readers import this file.
    from allotrope.models import meta, pickled, sharded

    text = str(ref)
    if text.startswith(RANDOM):
        from allotrope.models.random_weights import open_random

        return open_random(text.removeprefix(RANDOM), seed)
    folder = _folder(text)
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".safetensors") for name in names) or sharded.INDEX in names:
        return sharded.open_folder(folder)
    if "params.json" in names and any(re.fullmatch(meta.SHARDS, name) for name in names):
        return meta.open_folder(folder, allow_pickle)
    if any(name.endswith(_PICKLED) for name in names) or pickled.INDEX in names:
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
