"""The locked-down process that runs what a model wrote: a script of its own, started by `executing.py` and by nothing
else. It is the only file of the package that executes text.

It takes one JSON object on standard input (`program`, `folder`, `lock`, `seconds`, `memory`, `file_bytes`, `word`) and
writes one JSON object to standard output: what the kernel granted, and then, on a line of its own, how the program
ended. `word` stands in that line, so that the program's own words are not taken for it.

What keeps a program in: no environment, an empty folder of its own as the only place to write, Python's own files as
the only ones to read, no network, no other process started or signalled, and limits of time, memory and file size.
Where the kernel grants too little of that, nothing is run.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Any

_SET_SECCOMP, _FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # EPERM
_X32 = 0x40000000
# Per architecture its number and those of: socket, socketpair, connect, clone, clone3, fork, vfork, execve, execveat,
# kill, tkill, tgkill, pidfd_send_signal, ptrace, process_vm_readv, process_vm_writev, io_uring_setup, unshare, setns.
_FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 53, 42, 56, 435, 57, 58, 59, 322, 62, 200, 234, 424, 101, 310, 311, 425, 272, 308)),
    "aarch64": (0xC00000B7, (198, 199, 203, 220, 435, 221, 281, 129, 130, 131, 424, 117, 270, 271, 425, 97, 268)),
}
NEEDED = ("limits", "no new privileges", "landlock", "no processes")
"""What must be granted; and either of NETWORK."""
NETWORK = ("no network", "no sockets")


def main() -> None:
    """Run the program that standard input holds, and say how it ended."""
    job = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    granted = confine(job)
    _say(answer, {"granted": granted})
    if not enough(granted):
        return
    word, program = str(job["word"]), str(job["program"])
    del job
    try:
        exec(compile(program, "program", "exec", dont_inherit=True), {"__name__": "program"})  # noqa: S102 its purpose
    # Whatever a program raises, SystemExit and MemoryError too, says how it ended.
    except BaseException as error:
        _say(answer, {"word": word, "ended": _words(error)})
        raise
    _say(answer, {"word": word, "ended": "passed"})


def confine(job: dict[str, Any]) -> list[str]:
    """Give up, for good, what a program does not need; returns what the kernel granted."""
    sys.path.insert(0, str(job["lock"]))
    lock = importlib.import_module("pickle_worker")  # stands by itself, and knows how to shut a process in
    sys.path[:] = [place for place in sys.path[1:] if "-packages" not in place]
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    cut = lock.cut_network()
    granted: list[str] = lock.lock_down(
        Path(job["folder"]),
        int(job["file_bytes"]),
        seconds=int(job["seconds"]) + 1,
        memory=int(job["memory"]),
        readable=_readable(),
    )
    if cut:
        granted.append("no network")
    if "no new privileges" in granted and _forbid():
        granted += ["no sockets", "no processes"]
    return granted


def enough(granted: list[str]) -> bool:
    """Whether that keeps a program in."""
    return set(NEEDED) <= set(granted) and bool(set(NETWORK) & set(granted))


def _readable() -> list[Path]:
    """Where Python and the libraries that it loads lie."""
    places = {Path(sys.base_prefix) / "lib", Path("/lib"), Path("/lib64"), Path("/usr/lib"), Path("/usr/lib64")}
    places |= {Path(place) for place in sys.path if Path(place).is_dir()}
    return sorted(place for place in places if place.is_dir())


def _forbid() -> bool:
    """Forbid some system calls: with a filter that this process cannot take off again."""
    if platform.machine() not in _FORBIDDEN:
        return False
    architecture, calls = _FORBIDDEN[platform.machine()]
    deny = len(calls) + 2  # instructions from the first comparison to the denial
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, deny - 1, 0, _X32),
        *((_EQUAL, deny - 2 - i, 0, call) for i, call in enumerate(calls)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    held = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(lines), ctypes.addressof(held))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return not prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(program), 0, 0)


def _words(error: BaseException) -> str:
    """How a program failed, in one line."""
    try:
        text = " ".join(str(error).split())[:160]
    except Exception as another:
        text = type(another).__name__
        if isinstance(another, MemoryError):
            raise
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _say(answer: Any, found: dict[str, object]) -> None:
    answer.write(json.dumps(found) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
