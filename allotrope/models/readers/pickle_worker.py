"""The locked-down process that unpickles: a script of its own, started by `pickled.py` and by nothing else.

It takes one JSON object on standard input (`files`, `out`, `sys_path`, `limit`) and writes, for each file,
one safetensors file into the folder `out`. Its last line on standard output is a JSON object: `{"done": …}` or
`{"problem": …, "file": …}`.

What keeps a hostile file in: torch's weights-only unpickler, which builds tensors and plain containers and
refuses every other name; and, should that have a hole, a process with no environment, no network, no right to
start a program, to write anywhere but in `out` or to outgrow its limits. Each of the latter needs something
of the kernel; `lock_down` says which it got.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
_NEWUSER, _NEWNET = 0x1000_0000, 0x4000_0000
_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
# Landlock's rights over files, by bit.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _MAKE_REG, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
_RIGHTS_BY_ABI = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1)
_HEADROOM = 16 << 30  # address space for torch's own libraries, mapped but hardly touched
_SECONDS = 3600

_DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


class Refused(Exception):
    """The file is not a flat table of plain tensors."""


def main() -> None:
    """Convert what standard input asks for, and say on standard output how it went."""
    job = json.load(sys.stdin)
    sys.path[:] = job["sys_path"]
    cut_network()  # before torch is imported: a process with threads may not leave its user namespace
    import torch

    torch.set_num_threads(1)
    lock_down(Path(job["out"]), int(job["limit"]))
    current = ""
    try:
        for number, current in enumerate(job["files"]):
            convert(current, Path(job["out"]) / f"{number:05d}{SUFFIX}", int(job["limit"]))
    # What torch raises on a hostile file is of many types, and each of them means the same to the caller.
    except Exception as error:
        _answer({"problem": _words(error), "file": current})
        raise
    _answer({"done": len(job["files"])})


def cut_network() -> bool:
    """Move to a network namespace with nothing in it. False where the kernel does not let us."""
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    return unshare is not None and (not unshare(_NEWNET) or not unshare(_NEWUSER | _NEWNET))


def lock_down(
    out: Path,
    limit: int,
    *,
    seconds: int = _SECONDS,
    memory: int | None = None,
    readable: Sequence[Path] = (Path("/"),),
) -> list[str]:
    """Give up, for good, what the work does not need; returns what the kernel granted.

    What remains: writing files of `limit` bytes in `out`, reading in the folders `readable`, so many CPU seconds and
    bytes of address space. Running what a model wrote (`allotrope/eval/code_worker.py`) is locked down by this, too.
    """
    granted = ["limits"]
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limit),
        (resource.RLIMIT_AS, _HEADROOM + 2 * limit if memory is None else memory),
    ):
        _, hard = resource.getrlimit(what)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and not libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        granted.append("no new privileges")
        if _landlock(libc, out, readable):
            granted.append("landlock")
    return granted


def _landlock(libc: ctypes.CDLL, out: Path, readable: Sequence[Path]) -> bool:
    """Allow reading in `readable` and writing in `out`, and with that nothing else: no program starts."""
    abi = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return False
    handled = _RIGHTS_BY_ABI[min(abi, 3)]
    attributes = struct.pack("=Q", handled)
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    writing = (_WRITE_FILE | _MAKE_REG | _TRUNCATE | _READ_FILE) & handled
    for folder, rights in (*((folder, _READ_FILE | _READ_DIR) for folder in readable), (out, writing)):
        fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, fd)
        failed = libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(fd)
        if failed:
            return False
    done = not libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return done


def convert(source: str, target: Path, limit: int) -> None:
    """Unpickle one file, weights only, and write its tensors."""
    import torch

    try:
        table = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        table = torch.load(source, map_location="cpu", weights_only=True)  # the format from before torch 1.6
    write(checked(table, limit), target)


def checked(table: object, limit: int) -> dict[str, Any]:
    """The table, if every value is a plain tensor no larger than the bytes behind it."""
    import torch

    if not isinstance(table, dict) or not table:
        raise Refused("holds no table of tensors")
    total = 0
    for name, tensor in table.items():
        if not isinstance(name, str):
            raise Refused(f"holds a {type(name).__name__} where a tensor's name should be")
        if not isinstance(tensor, torch.Tensor):
            raise Refused(f"holds under {name[:100]!r} a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise Refused(f"tensor {name[:100]!r} is not a plain dense one")
        if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
            raise Refused(f"tensor {name[:100]!r} has the unknown dtype {tensor.dtype}")
        size = tensor.numel() * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise Refused(f"tensor {name[:100]!r} claims {size} bytes and has {tensor.untyped_storage().nbytes()}")
        total += size
    if total > limit:
        raise Refused(f"its tensors claim {total} bytes, which its size does not allow for")
    return table


def write(table: dict[str, Any], target: Path) -> None:
    """A safetensors file, tensor by tensor: wide dtypes first, so that every one is aligned."""
    import torch

    header, at = dict[str, Any](), 0
    names = sorted(table, key=lambda name: (-table[name].element_size(), name))
    for name in names:
        tag, width = _DTYPES[str(table[name].dtype).removeprefix("torch.")]
        size = table[name].numel() * width
        header[name] = {"dtype": tag, "shape": list(table[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            # Detached and resolved: neither gradients nor lazy conjugation reach the file.
            plain = table[name].detach().resolve_neg().contiguous().reshape(-1)
            if plain.numel():
                file.write(plain.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _words(error: Exception) -> str:
    """What an error means to whoever gave the file: torch's own text advises to switch the protection off."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"asks for {asked[1][:100]}, which no table of weights needs: perhaps an attack"
    if isinstance(error, Refused):
        return text
    if isinstance(error, OSError):
        return f"cannot be converted: {error.strerror or type(error).__name__}"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "needs more memory than its size allows for"
    return f"is damaged, or no file of pickled weights ({type(error).__name__})"


def _answer(found: dict[str, object]) -> None:
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
