"""Run by test_build_kill.py in a process of its own: forks, builds in the child, and kills it at one point.

    python build_to_death.py MODE TARGET VERSION

MODE is `kit` (the writer alone) or a checkpoint (a whole build). For each number that it reads, it forks a
child that dies by SIGKILL at that point, and writes the child's exit code: 0 if the work was done before.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allotrope.artifact import atomic
from tests import engine_kit


def arm(at: int) -> None:
    """Count writes, syncs and renames; half of the `at`-th is done, then the process is no more."""
    count = [0]

    def wrap(real: Callable[..., Any], half: Callable[..., Any] | None) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return wrapped

    write = os.write
    os.write = wrap(write, lambda handle, data: write(handle, data[: len(data) // 2]))
    os.fsync = wrap(os.fsync, None)
    os.open = wrap(os.open, None)
    Path.mkdir = wrap(Path.mkdir, None)  # type: ignore[method-assign]
    Path.rename = wrap(Path.rename, None)  # type: ignore[method-assign]
    Path.unlink = wrap(Path.unlink, None)  # type: ignore[method-assign]
    os.unlink = wrap(os.unlink, None)
    os.rmdir = wrap(os.rmdir, None)
    atomic._exchange = wrap(atomic._exchange, None)


def main() -> None:
    mode, target, version = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if mode == "kit":

        def work() -> None:
            engine_kit.write(target, version=version)
    else:
        from allotrope.build import builder
        from allotrope.build.options import BuildOptions

        def work() -> None:
            builder.build(mode, target, BuildOptions(device="cpu", tune="off", threads=1))

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            arm(int(line))
            work()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
