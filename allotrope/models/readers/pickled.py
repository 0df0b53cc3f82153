"""Pickled weights (.bin, .pt, .pth): refused, or on request converted at once by a locked-down process.

What is read afterwards is the conversion, through the same strict reader as everything else. It is kept in
the cache folder under a key over the originals' paths, sizes and times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allotrope import settings
from allotrope.artifact import atomic
from allotrope.errors import CheckpointError
from allotrope.models.readers import pickle_worker
from allotrope.models.readers.hf_folder import (
    FileCheckpoint,
    check_weight_map,
    contained,
    read_configs,
    read_weight_map,
    some,
    weight_files,
)
from allotrope.models.readers.safetensors_file import SafetensorsFile, open_file

INDEX = "pytorch_model.bin.index.json"
SUFFIXES = (".bin", ".pt", ".pth")
_WHOLE = "pytorch_model.bin"
_DONE = "converted.json"
_VERSION = 1
# What training leaves beside the weights.
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"}
_PATIENCE = 2 * 3600


def open_folder(folder: Path, allow_pickle: bool) -> FileCheckpoint:
    """The checkpoint in a folder in Hugging Face layout whose weights are pickled."""
    weight_map = read_weight_map(folder, INDEX, SUFFIXES) if contained(folder, INDEX, missing_ok=True) else {}
    names = _shards(folder, weight_map) if weight_map else [_single(folder)]
    config, generation = read_configs(folder)
    files, key = convert(folder, names, allow_pickle)
    if weight_map:
        check_weight_map(folder, INDEX, weight_map, dict(zip(names, (file.tensors for file in files), strict=True)))
    return FileCheckpoint(str(folder), folder, config, generation, files, key)


def _single(folder: Path) -> str:
    names = [name for name in weight_files(folder, SUFFIXES) if name not in _NOT_WEIGHTS]
    if _WHOLE in names or len(names) == 1:
        return _WHOLE if _WHOLE in names else names[0]
    raise CheckpointError(
        f"which of {some(names)} are the weights? There is no {_WHOLE} and no {INDEX}" if names else "no weights",
        where=str(folder),
        remedy="download the index too, or leave one file",
    )


def _shards(folder: Path, weight_map: dict[str, str]) -> list[str]:
    shards = sorted(set(weight_map.values()))
    extra = [name for name in weight_files(folder, SUFFIXES) if name not in {*shards, *_NOT_WEIGHTS}]
    if extra:
        raise CheckpointError(
            f"{some(extra)} lies beside the shards, but {INDEX} does not name it",
            where=str(folder),
            remedy="move it out of the folder if it does not belong to the model",
        )
    return shards


def convert(folder: Path, names: Sequence[str], allow_pickle: bool) -> tuple[tuple[SafetensorsFile, ...], str]:
    """The pickled files of a folder as safetensors files, in their order, and a digest of the originals."""
    if not allow_pickle:
        raise CheckpointError(
            f"the weights are pickled ({some(names)}), and opening a pickle can run code",
            where=str(folder),
            remedy="give a safetensors copy, or --allow-pickle to convert them in a locked-down process",
        )
    sources = [path.resolve() for name in names if (path := contained(folder, name))]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    key = hashlib.sha256(repr((_VERSION, facts)).encode("utf-8", "surrogatepass")).hexdigest()
    target = settings.cache_dir() / "converted" / key[:32]
    if not (target / _DONE).is_file():
        _fill(target, sources, limit=2 * sum(size for _, size, _ in facts) + (1 << 20))
    return tuple(open_file(target / f"{i:05d}{pickle_worker.SUFFIX}") for i in range(len(sources))), key


def _fill(target: Path, sources: Sequence[Path], limit: int) -> None:
    """Make the cached folder `target`, wholly or not at all."""
    try:
        with atomic.folder(target, replaces=_DONE) as out:
            out.chmod(0o700)
            _work(sources, out, limit)
            atomic.write_file(out / _DONE, json.dumps({"from": [str(path) for path in sources]}).encode())
    except OSError as error:
        raise CheckpointError(
            f"the conversion cannot be written: {error.strerror}",
            where=str(target.parent),
            remedy="free or name another cache folder (ALLOTROPE_CACHE)",
        ) from error


def _work(sources: Sequence[Path], out: Path, limit: int) -> None:
    """Have the worker write each source's safetensors file into `out`, of `limit` bytes at most."""
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            "pickled weights need torch to be read", where=str(sources[0]), remedy="pip install 'allotrope[torch]'"
        )
    job = {
        "files": [str(path) for path in sources],
        "out": str(out),
        "limit": limit,
        "sys_path": [entry for entry in sys.path if entry],
    }
    command = [sys.executable, "-I", "-B", pickle_worker.__file__]
    try:
        worker = subprocess.run(
            command,
            input=json.dumps(job).encode(),
            capture_output=True,
            env={"OMP_NUM_THREADS": "1"},
            cwd=out,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"converting took over {_PATIENCE} s", where=str(sources[0].parent)) from None
    answer = _answer(worker.stdout)
    if worker.returncode or "done" not in answer:
        problem = str(answer.get("problem") or f"the converting process ended with status {worker.returncode}")
        raise CheckpointError(
            problem,
            where=str(answer.get("file") or sources[0].parent),
            remedy="none of it was loaded; give a safetensors copy",
        )


def _answer(output: bytes) -> dict[str, Any]:
    """The worker's last line; nothing if it did not come to that."""
    lines = output.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
