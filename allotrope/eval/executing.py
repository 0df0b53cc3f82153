"""Running what models wrote, each program in a locked-down process and an empty folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.errors import UsageError
from allotrope.eval import code_worker
from allotrope.models.readers import pickle_worker

SECONDS = 3
START_SECONDS = 2  # for Python itself
MEMORY = 1 << 30
FILE_BYTES = 1 << 20
PASSED = "passed"


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed`, or why not; and what kept it in."""

    ended: str
    granted: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it ran to its end."""
        return self.ended == PASSED


def execute(program: str, *, seconds: float = SECONDS) -> Outcome:
    """Run one program to its end, or to that of its time."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="allotrope-") as folder:
        job = {
            "program": program,
            "folder": folder,
            "lock": os.path.dirname(pickle_worker.__file__),  # noqa: PTH120 a string is what goes into JSON
            "seconds": seconds,
            "memory": MEMORY,
            "file_bytes": FILE_BYTES,
            "word": word,
        }
        output, status, late = _run(json.dumps(job).encode(), folder, seconds)
    lines = _lines(output)
    granted = tuple(next((line["granted"] for line in lines if isinstance(line.get("granted"), list)), ()))
    if not granted and not late:
        raise UsageError(f"no program can be run: the process ended with status {status}")
    if granted and not code_worker.enough(list(granted)):
        raise UsageError(
            f"--execute: this system cannot lock a program in (it grants {', '.join(granted)})",
            remedy="leave --execute out and run the kept completions elsewhere",
        )
    ended = next((str(line["ended"]) for line in lines if line.get("word") == word and "ended" in line), None)
    if ended is None:
        ended = f"stopped after {seconds:g} s" if late or status == -signal.SIGXCPU else f"ended with status {status}"
    return Outcome(ended, granted)


def _run(job: bytes, folder: str, seconds: float) -> tuple[bytes, int, bool]:
    """What the process wrote, how it ended, and whether it had to be ended.

    It writes to a file, which cannot outgrow the limit that it has set itself; a pipe could fill our memory.
    """
    command = [sys.executable, "-I", "-B", code_worker.__file__]
    with (
        tempfile.TemporaryFile() as answer,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        late = False
        try:
            process.communicate(job, timeout=seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end(process)
            process.wait()
        answer.seek(0)
        return answer.read(FILE_BYTES), process.returncode, late


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group that the process began."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _lines(output: bytes) -> Sequence[dict[str, Any]]:
    """The JSON objects that were written, one a line; a program may have written anything."""
    found = []
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
