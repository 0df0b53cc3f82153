"""Long-lived worker processes: asked in JSON lines, stopped between two turns, and mourned in one line."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from allotrope import settings
from allotrope.bench.catalogue import SCRIPTS, WORKER
from allotrope.errors import AllotropeError

_LONGEST_S = 1800.0  # what one question may take: compiling a large model takes minutes
_LAST = 400  # characters of a dead worker's last words
_GOODBYE_S = 5.0


class WorkerFailed(AllotropeError):
    """A worker ended, or did not answer; the message has its last words."""


class Worker:
    """One process. `ask` wakes it, waits for its answer and puts it to sleep again."""

    def __init__(
        self, name: str, python: Path, script: str, *, threads: int, own: bool = False, temporary: Path | None = None
    ) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the worker
        # Its own group, so that all of it can be stopped; in our session, so that the kernel ends it with us.
        self._process = subprocess.Popen(
            [str(python), "-P" if own else "-I", str(WORKER), str(SCRIPTS / f"{script}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=settings.for_worker(threads, own=own, temporary=temporary),
            process_group=0,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, do: str, *, longest_s: float = _LONGEST_S, **values: Any) -> dict[str, Any]:
        """The answer to a request; WorkerFailed if there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise WorkerFailed(f"{self.name} has no pipes")
        self._signal(signal.SIGCONT)
        try:
            stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            stdin.flush()
            line = _line(stdout, longest_s)
        except OSError:
            line = b""
        if line is None:
            self.kill()
            raise WorkerFailed(f"{self.name} gave no answer for {longest_s:.0f} s")
        if not line.endswith(b"\n"):
            raise WorkerFailed(f"{self.name} ended: {self._last_words()}")
        self._signal(signal.SIGSTOP)
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Let it end, or end it."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)
        self.kill()

    def kill(self) -> None:
        """End it now, whatever it is doing."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        """Why it ended, as far as it said."""
        code = self._process.wait()
        self._stderr.seek(max(self._stderr.seek(0, os.SEEK_END) - 65536, 0))
        lines = [line.strip() for line in self._stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not lines or code < 0:
            return how
        kind, colon, said = lines[-1].partition(": ")
        return (said if colon and kind.replace(".", "").isidentifier() else lines[-1])[:_LAST]


def _line(stream: Any, longest_s: float) -> bytes | None:
    """One line, b"" or a part of it at the end of the stream, None when time is up."""
    until, found = time.monotonic() + longest_s, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not selector.select(left):
                return None
            piece = os.read(stream.fileno(), 1 << 20)
            if not piece:
                break
            found += piece
    return bytes(found)
