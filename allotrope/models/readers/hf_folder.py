"""A folder in Hugging Face layout: config.json beside one safetensors file, or shards with an index.

Only names inside the folder are followed. The one exception is the layout of Hugging Face's download cache,
where `snapshots/<revision>/<file>` is a link to `../../blobs/<hash>`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo
from allotrope.models.readers.safetensors_file import SafetensorsFile, open_file
from allotrope.models.readers.safetensors_header import shown
from allotrope.models.readers.strict_json import INDEX_LIMIT, read_object
from allotrope.paths import outside

INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_LONGEST_NAME = 255  # bytes, on every file system in use
_OTHER_LAYOUT = "consolidated"  # Mistral publishes the same weights a second time under its own names


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint out of safetensors files, each tensor in exactly one of them."""

    origin: str
    folder: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    files: tuple[SafetensorsFile, ...]
    original: str = ""  # the digest of what the files were converted from, if they were

    def __post_init__(self) -> None:
        seen = dict[str, Path]()
        for file in self.files:
            for name in file.entries:
                if name in seen:
                    raise CheckpointError(
                        f"tensor {shown(name)} is here and in {seen[name].name} too", where=str(file.path)
                    )
                seen[name] = file.path

    @cached_property
    def _home(self) -> dict[str, SafetensorsFile]:
        return {name: file for file in self.files for name in file.entries}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor."""
        return {name: info for file in self.files for name, info in file.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; bf16 as uint16."""
        return self._home[name].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows of one tensor."""
        return self._home[name].read_rows(name, start, stop)

    def digest(self) -> str:
        """Over the config and each file's name, header, size and time of change (or the original's)."""
        return digest_of([self.config, self.generation, self.original], () if self.original else self.files)


def digest_of(facts: Sequence[object], files: Sequence[SafetensorsFile]) -> str:
    """A SHA-256 over some plain facts and the files' names, headers, sizes and times."""
    found = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass"))
    for file in files:
        found.update(repr((file.path.name, file.stamp, len(file.header))).encode())
        found.update(file.header)
    return found.hexdigest()


def open_folder(folder: Path) -> FileCheckpoint:
    """The checkpoint in a folder that holds safetensors files."""
    files = _sharded(folder) if contained(folder, INDEX, missing_ok=True) else _single(folder)
    config, generation = read_configs(folder)
    return FileCheckpoint(str(folder), folder, config, generation, files)


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and generation_config.json where there is one."""
    config = contained(folder, "config.json", missing_ok=True)
    if config is None:
        raise CheckpointError(
            "no config.json", where=str(folder), remedy="give a folder in Hugging Face layout, as it was downloaded"
        )
    generation = contained(folder, "generation_config.json", missing_ok=True)
    return read_object(config), read_object(generation) if generation else {}


def contained(folder: Path, name: str, missing_ok: bool = False) -> Path | None:
    """The path of the file `name`, which must lie in `folder` itself; with `missing_ok`, None if it is not there."""
    path = folder / name
    if not _is_plain(name):
        raise CheckpointError(f"{shown(name)} is no plain file name inside the folder", where=str(folder))
    linked = path.is_symlink()
    if missing_ok and not linked and not path.exists():
        return None
    try:
        real = outside(path)
    except (OSError, RuntimeError):
        what = "a link that leads nowhere" if linked else "missing"
        raise CheckpointError(f"{shown(name)} is {what}", where=str(folder), remedy="download it again") from None
    if real is not None:
        raise CheckpointError(
            f"{shown(name)} is a link out of the folder, to {real}", where=str(folder), remedy="copy the file in"
        )
    return path


def _is_plain(name: str) -> bool:
    """Whether a file in a folder can have this name."""
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return 0 < size <= _LONGEST_NAME and name not in (".", "..") and not set(name) & set("/\\\0")


def weight_files(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """The names of the folder's files with one of these suffixes, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)


def _single(folder: Path) -> tuple[SafetensorsFile, ...]:
    names = weight_files(folder, [_SUFFIX])
    if len(names) > 1:
        names = [name for name in names if not name.startswith(_OTHER_LAYOUT)] or names
    if len(names) > 1:
        raise CheckpointError(
            f"{len(names)} safetensors files ({some(names)}) and no {INDEX} that says what each is",
            where=str(folder),
            remedy="download the index too, or leave one file",
        )
    return tuple(open_file(path) for name in names if (path := contained(folder, name)))


def _sharded(folder: Path) -> tuple[SafetensorsFile, ...]:
    """The shards that the index names: all there, no other beside them, each with the tensors it should have."""
    weight_map = read_weight_map(folder, INDEX, (_SUFFIX,))
    shards = sorted(set(weight_map.values()))
    extra = set(weight_files(folder, [_SUFFIX])) - set(shards)
    extra = {name for name in extra if not name.startswith(_OTHER_LAYOUT)}
    if extra:
        raise CheckpointError(
            f"{some(sorted(extra))} lies beside the shards, but {INDEX} does not name it",
            where=str(folder),
            remedy="move it out of the folder if it does not belong to the model",
        )
    files = tuple(open_file(path) for name in shards if (path := contained(folder, name)))
    check_weight_map(folder, INDEX, weight_map, {file.path.name: file.tensors for file in files})
    return files


def read_weight_map(folder: Path, index: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """The index's map of tensor names to shards, every shard a plain name of a file that is there."""
    where = str(folder / index)
    path = contained(folder, index)
    weight_map = (read_object(path, INDEX_LIMIT) if path else {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("no weight_map in the index", where=where)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(suffixes) or "/" in shard or "\\" in shard:
            raise CheckpointError(
                f"tensor {shown(name)} is said to lie in {shown(str(shard))}, which is no plain name of a "
                f"{' or '.join(suffixes)} file in the folder",
                where=where,
            )
    for shard in sorted(set(weight_map.values())):
        contained(folder, shard)
    return weight_map


def check_weight_map(
    folder: Path, index: str, weight_map: Mapping[str, str], shards: Mapping[str, Mapping[str, object]]
) -> None:
    """The index and the shards agree about every tensor, in both directions."""
    where = str(folder / index)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"tensor {shown(name)} is said to lie in {shard}, which does not have it", where=where
            )
    for shard, tensors in shards.items():
        for name in tensors:
            if weight_map.get(name) != shard:
                said = f"says {weight_map[name]}" if name in weight_map else "does not name it"
                raise CheckpointError(f"tensor {shown(name)} lies in {shard}, but the index {said}", where=where)


def some(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
