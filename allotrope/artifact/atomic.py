"""A folder that is there wholly or not at all, whatever is killed or fails while it is written.

    .NAME.lock                 held (flock) while somebody builds; holds the builder's pid
    .NAME.tmp-PID-RANDOM/      being written; never opened by anybody else
    NAME/                      exchanged with the temporary folder in one system call

Whoever holds the lock knows that every other temporary folder of the same name belongs to the dead.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allotrope.artifact import digests
from allotrope.errors import BuildError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class Busy(BuildError):
    """Another process is writing the same."""


@contextmanager
def folder(target: Path, *, replaces: str) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; when the block ends well, it becomes `target`.

    An existing target is replaced only if it holds a file named `replaces`, or nothing. When the block
    raises, the temporary folder is removed and the target is as it was.
    """
    parent, stem = _place(target)
    with locked(parent / f".{stem}.lock", target):
        _bury_the_dead(parent, stem, target)
        _check_replaceable(target, replaces)
        temporary = parent / f".{stem}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            _check_replaceable(target, replaces)
            _put_in_place(temporary, target, parent, stem)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write and sync one file."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_files(top: Path) -> None:
    """Sync every file below `top`, whoever wrote it."""
    for path in top.rglob("*"):
        if path.is_file():
            _sync(path)


def sync_tree(top: Path) -> None:
    """Sync every folder from `top` down; their files were synced when written."""
    for found in (top, *(path for path in top.rglob("*") if path.is_dir())):
        _sync(found)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _place(target: Path) -> tuple[Path, str]:
    """The target's parent, made if missing, and the stem of the names beside it (short enough for any disk)."""
    target = target.absolute()  # not resolve(): a link as target is refused, not followed
    if target.name in ("", "..") or "\0" in str(target):
        raise BuildError("cannot be an engine folder", where=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsencode(target.name)
    return target.parent, target.name if len(name) <= 180 else digests.of_bytes(name)[:32]


@contextmanager
def locked(path: Path, target: Path) -> Iterator[None]:
    """Hold the lock, or say who holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise Busy(
                f"another build (pid {holder}) is writing it", where=str(target), remedy="wait for it or stop it"
            ) from error
        except OSError:
            os.close(handle)
            raise
        # The last holder may have removed the file between our open and our lock: then ours is nobody's.
        if _same_file(handle, path):
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _bury_the_dead(parent: Path, stem: str, target: Path) -> None:
    """Remove what killed builds of this target left; put back an engine that one had set aside."""
    left = re.compile(rf"\.{re.escape(stem)}\.(tmp|old)-\d+-[0-9a-f]{{8}}")
    for path in sorted(parent.iterdir()):
        found = left.fullmatch(path.name)
        if found and found[1] == "old" and not target.exists():
            path.rename(target)
        elif found:
            shutil.rmtree(path, ignore_errors=True)  # what a child of the dead still writes to is for the next build


def _check_replaceable(target: Path, replaces: str) -> None:
    if target.is_symlink():
        raise BuildError("is a symbolic link", where=str(target), remedy="name the folder itself")
    if not target.exists() or (target / replaces).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise BuildError(
            "exists and is not an engine", where=str(target), remedy="choose another folder or empty this one"
        )


def _put_in_place(temporary: Path, target: Path, parent: Path, stem: str) -> None:
    if not target.exists():
        temporary.rename(target)
    elif _exchange(temporary, target):
        pass  # the old engine now has the temporary name, and goes with it
    else:
        # No exchange on this file system: for an instant there is no target, and the next build (or the
        # reader, in words) finds the old one under its other name.
        aside = parent / f".{stem}.old-{os.getpid()}-{secrets.token_hex(4)}"
        target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    _sync(parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux); False where that is not supported."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))
