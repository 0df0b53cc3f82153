"""Pinned archives from the package index: downloaded with pip, checked by hash, read without unpacking."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_string
from email.message import Message
from pathlib import Path, PurePosixPath

from tools.train.corpus.sources import Source, SourceError

# The same wheels wherever this runs: only the Python files in them are read, so no machine needs to run them.
_ONE_PLATFORM = (
    "--only-binary=:all:",
    "--implementation=cp",
    "--python-version=3.11",
    *(f"--abi={abi}" for abi in ("cp311", "abi3", "none")),
    *(f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014")),
)
_LARGEST_FILE = 2_000_000  # bytes of a member worth reading; far above the limits of the filters
_READ = (".py", ".rst", ".md", ".txt")
_AT_A_TIME = 2


def fetch(sources: tuple[Source, ...], folder: Path) -> dict[str, Path]:
    """Every source's archive in `folder`, downloaded where absent, by the source's name."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = list(pool.map(lambda source: _fetch_one(source, folder), sources))
    return {source.name: path for source, path in zip(sources, found, strict=True)}


def _fetch_one(source: Source, folder: Path) -> Path:
    own = folder / f"{source.name}-{source.version}"
    if not own.is_dir() or not any(own.iterdir()):
        _download(source, own)
    path = next(own.iterdir())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SourceError(
            f"sha256 is {digest}, sources.toml pins {source.sha256}",
            where=str(path),
            remedy="delete the file and try again; if it stays so, the release was replaced",
        )
    return path


def _download(source: Source, own: Path) -> None:
    options = _ONE_PLATFORM if source.archive == "wheel" else (f"--no-binary={source.name}",)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(own), *options]
    done = subprocess.run([*command, f"{source.name}=={source.version}"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(
            f"pip could not download it: {last}",
            where=f"{source.name} {source.version}",
            remedy="check the network and the package index that pip is configured for",
        )


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The archive's Python and text files by name, in the order of the names; an sdist's top folder is taken off."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for info in sorted(wheel.infolist(), key=lambda info: info.filename):
                if _worth_reading(info.filename, info.file_size):
                    yield info.filename, wheel.read(info)
        return
    with tarfile.open(path) as sdist:
        for entry in sorted(sdist.getmembers(), key=lambda entry: entry.name):
            inside = entry.name.partition("/")[2]
            if entry.isfile() and _worth_reading(inside, entry.size):
                file = sdist.extractfile(entry)
                if file is not None:
                    yield inside, file.read()


def _worth_reading(name: str, size: int) -> bool:
    return size <= _LARGEST_FILE and (name.endswith(_READ) or is_metadata(name) or is_licence(name))


def is_metadata(name: str) -> bool:
    """The archive's own metadata: a wheel's METADATA or an sdist's PKG-INFO."""
    path = PurePosixPath(name)
    return name == "PKG-INFO" or (len(path.parts) == 2 and path.match("*.dist-info/METADATA"))


def is_licence(name: str) -> bool:
    """A licence file of the project itself: at the top of an sdist, or with a wheel's metadata."""
    path = PurePosixPath(name)
    top = len(path.parts) == 1 or path.parts[0].endswith(".dist-info")
    return top and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))


def metadata_of(path: Path) -> tuple[Message, dict[str, str]]:
    """The archive's metadata and its licence files' texts."""
    metadata, texts = Message(), {}
    for name, data in members(path):
        if is_metadata(name):
            metadata = message_from_string(data.decode("utf-8", "replace"))
        elif is_licence(name):
            texts[name] = data.decode("utf-8", "replace")
    return metadata, texts
