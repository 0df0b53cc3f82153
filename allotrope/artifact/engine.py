"""An engine folder, opened: its manifest and its weights, memory-mapped and never copied."""

from __future__ import annotations

import mmap
import shlex
import warnings
from pathlib import Path

import numpy as np

from allotrope import native
from allotrope.artifact import digests, layout, manifest
from allotrope.artifact.manifest import Manifest
from allotrope.artifact.soundness import check_plan
from allotrope.errors import EngineError
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint
from allotrope.ops import kernels
from allotrope.ops.packing import RawArray

TOKENIZER = "tokenizer"


class Engine:
    """An engine. Made by `open_engine`, or by the builder for a folder that it has just written."""

    def __init__(self, path: Path, described: Manifest) -> None:
        self.path, self.manifest = path, described
        self._entries = {
            entry.name: (shard.path, entry) for shard in layout.shards(described.plan) for entry in shard.entries
        }
        self._maps: dict[str, mmap.mmap] = {}

    @property
    def tokenizer_dir(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.path / TOKENIZER

    def dtype(self, name: str) -> str:
        """The dtype tag in which weight `name` is stored."""
        return self._entries[name][1].dtype

    def array(self, name: str) -> RawArray:
        """Weight `name` as it is packed. Pages come from the file when touched; bf16 travels as uint16.

        The mapping is copy-on-write, so that torch may wrap it without a warning; nobody writes to it.
        """
        shard, entry = self._entries[name]
        if shard not in self._maps:
            self._maps[shard] = _map(self.path / shard)
        carrier = np.dtype(layout.STORED[entry.dtype][1])
        flat: RawArray = np.frombuffer(self._maps[shard], carrier, entry.nbytes // carrier.itemsize, entry.start)
        return flat.reshape(entry.shape)

    def forget(self) -> None:
        """Let go of the resident pages; they come back from the file when touched."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def check_digests(self) -> None:
        """Read every byte and compare digests; the first difference is an error that names it."""
        for shard in layout.shards(self.manifest.plan):
            facts = self.manifest.files[shard.path]
            for entry in shard.entries:
                if digests.of_span(self.path / shard.path, entry.start, entry.nbytes) != facts.tensors.get(entry.name):
                    raise EngineError(
                        f"weight {entry.name} does not match its digest",
                        where=str(self.path / shard.path),
                        remedy=manifest.REBUILD,
                    )
        for name, facts in self.manifest.files.items():
            if not name.startswith(layout.FOLDER) and digests.of_file(self.path / name) != facts.digest:
                raise EngineError("does not match its digest", where=str(self.path / name), remedy=manifest.REBUILD)


def open_engine(path: Path | str, *, device: Device | None = None, check_digests: bool = False) -> Engine:
    """Open an engine folder, strictly. Without `device`, the one that it was built for is looked up."""
    folder = Path(path)
    described = manifest.read(folder)
    check_plan(described, folder / manifest.FILE)
    _check_device(described, folder, device)
    _check_tactics(described, folder)
    _check_files(described, folder)
    kernels.install(described.kernels)
    engine = Engine(folder, described)
    if check_digests:
        engine.check_digests()
    return engine


# What an engine was built with that makes it another one; the rest says how it is built.
_MAKING = ("dtype", "weights", "group_size", "activations", "method", "kv", "max_kl", "calibration", "max_len")


def rebuild_command(described: Manifest, folder: Path) -> str:
    """What to type to build the same engine anew."""
    asked = described.options
    words = ["allotrope", "build", str(described.source["path"]), "-o", str(folder)]
    for name in _MAKING:
        if (value := asked.get(name)) not in (None, "auto"):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--asymmetric"] if asked.get("asymmetric") else []
    if keep := asked.get("keep"):
        words += ["--keep", *map(str, keep)]
    return f"rebuild it: {shlex.join(words)}"


def _check_device(described: Manifest, folder: Path, device: Device | None) -> None:
    from allotrope.hw.detect import detect

    then: dict[str, str] = described.fingerprint["hard"]
    if "isa" in then and native.find().core is None:
        raise EngineError(
            f"computed by the native core, and there is none here: {native.find().why}",
            where=str(folder),
            remedy=f"or {rebuild_command(described, folder)}",
        )
    here = fingerprint(device or detect(described.device["kind"]), native.find().isa if "isa" in then else None)
    for fact in sorted(set(then) | set(here.hard)):
        if then.get(fact) != here.hard.get(fact):
            raise EngineError(
                f"built for {fact} {then.get(fact)!r}, this is {here.hard.get(fact)!r}",
                where=str(folder),
                remedy=rebuild_command(described, folder),
            )
    soft: dict[str, str] = described.fingerprint["soft"]
    changed = [f"{fact} {soft.get(fact)!r}, now {now!r}" for fact, now in here.soft.items() if soft.get(fact) != now]
    if changed:
        warnings.warn(f"{folder}: built under {'; '.join(changed)}: same results, perhaps other speeds", stacklevel=3)


def _check_tactics(described: Manifest, folder: Path) -> None:
    from allotrope.ops import registry

    for key, version in described.tactics.items():
        op, _, name = key.partition("/")
        now = registry.tactic(op, name).version
        if now != version:
            raise EngineError(
                f"tactic {key} was version {version}, is {now}",
                where=str(folder),
                remedy=rebuild_command(described, folder),
            )


def _check_files(described: Manifest, folder: Path) -> None:
    shards = {shard.path: shard for shard in layout.shards(described.plan)}
    listed = {name for name in described.files if name.startswith(layout.FOLDER + "/")}
    if listed != set(shards):
        raise EngineError(
            "the weight files listed are not the plan's", where=str(folder / manifest.FILE), remedy=manifest.REBUILD
        )
    _check_no_others(described, folder)
    for name, facts in described.files.items():
        path = folder / name
        if name not in shards and (Path(name).parent.as_posix() != TOKENIZER or Path(name).name in ("", "..")):
            raise EngineError(
                f"file {name!r} has no place in an engine", where=str(folder / manifest.FILE), remedy=manifest.REBUILD
            )
        if not path.is_file():
            raise EngineError(
                "missing (incomplete build or copy)", where=str(path), remedy=rebuild_command(described, folder)
            )
        size = path.stat().st_size
        if size != facts.bytes or (name in shards and size != shards[name].nbytes):
            expected = shards[name].nbytes if name in shards else facts.bytes
            raise EngineError(
                f"has {size} bytes, should have {expected} (incomplete build or copy)",
                where=str(path),
                remedy=rebuild_command(described, folder),
            )
        if name in shards:
            with path.open("rb") as file:
                header = file.read(len(shards[name].header))
            if header != shards[name].header or digests.of_bytes(header) != facts.digest:
                raise EngineError("its header is not the plan's", where=str(path), remedy=manifest.REBUILD)


def _check_no_others(described: Manifest, folder: Path) -> None:
    """Nothing lies beside what was built: a chat template put there would be read, and no digest would know of it."""
    for part in (layout.FOLDER, TOKENIZER):
        for path in sorted((folder / part).iterdir()) if (folder / part).is_dir() else ():
            # what begins with a dot is made by file managers, and nobody here reads it
            if f"{part}/{path.name}" not in described.files and not path.name.startswith("."):
                raise EngineError("is no part of the engine", where=str(path), remedy="remove it, or build again")


def _map(path: Path) -> mmap.mmap:
    # Private and writable would count against strict overcommit limits by its whole size, hence NORESERVE
    # (0x4000 on Linux; Python names it only from 3.13 on).
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
