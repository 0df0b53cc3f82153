"""The template renderer's near side: one warm helper process, killed when it takes too long."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, cast

from allotrope.errors import RequestError, TokenizerError
from allotrope.tokenizers import isolated

START_SECONDS = 20.0
RENDER_SECONDS = 1.0
MAX_REQUEST = 16 << 20  # bytes of JSON; a body over HTTP has at most 4 MiB
MAX_ANSWER = 64 << 20
REMEDY = "use plain prompts, or another chat_template.jinja"


class Renderer:
    """Renders in a process of its own, so that neither a loop without end nor a huge string can harm this one.

    The process starts with the first template and is kept. It limits its own memory; its time is measured here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(
        self,
        source: str,
        context: Mapping[str, object],
        said: Mapping[str, object],
        specials: Sequence[str],
        where: str,
    ) -> tuple[str, str]:
        """(text, guard): the guard is a character found nowhere in what was sent; see `Said` in the helper."""
        try:
            request = {"source": source, "context": context, "said": said, "specials": specials}
            data = json.dumps(request, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the conversation is not plain data ({str(error)[:80]})") from error
        if len(data) > MAX_REQUEST:
            raise RequestError(f"the conversation takes {len(data):,} bytes, more than {MAX_REQUEST:,}")
        with self._lock:
            answer = self._exchange(data, where)
        kind, text = str(answer.get("kind")), str(answer.get("text"))
        if kind == "refused":
            raise RequestError(f"the chat template refuses the messages: {text[:200]}")
        if kind != "text":
            raise TokenizerError(f"it failed ({text[:200]})", where=where, remedy=REMEDY)
        return text, str(answer.get("guard"))

    def close(self) -> None:
        """End the helper process, if there is one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return  # after a fork the process belongs to the parent
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _exchange(self, data: bytes, where: str) -> Mapping[str, object]:
        process = self._running()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(RENDER_SECONDS, stop)
        clock.daemon = True
        clock.start()
        try:
            answer = _ask(process, data)
        except (OSError, ValueError):
            answer = None
        finally:
            clock.cancel()
        if answer is not None and not answer.get("ending"):
            return answer
        self.close()
        if answer is not None:
            return answer
        reason = f"stopped after {RENDER_SECONDS:g} s" if late.is_set() else "it ended the renderer's process"
        raise TokenizerError(reason, where=where, remedy=REMEDY)

    def _running(self) -> subprocess.Popen[bytes]:
        """The helper process, started when there is none or when this process is a fork of its owner."""
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        self.close()
        process = isolated.start("render_child.py", ("jinja2", "markupsafe"))
        if self._owner != os.getpid():
            atexit.register(self.close)
        self._process, self._owner = process, os.getpid()
        clock = threading.Timer(START_SECONDS, process.kill)
        clock.daemon = True
        clock.start()
        try:
            ready = process.stdout is not None and process.stdout.read(1) == b"!"
        finally:
            clock.cancel()
        if not ready:
            self.close()
            raise TokenizerError("the template renderer did not start", remedy="check that jinja2 is installed")
        return process


def _ask(process: subprocess.Popen[bytes], data: bytes) -> Mapping[str, object] | None:
    """Send one request and read one answer, each an 8-byte length and JSON; None where the process ends instead."""
    inward, outward = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    inward.write(len(data).to_bytes(8, "big") + data)
    inward.flush()
    head = outward.read(8)
    size = int.from_bytes(head, "big")
    if len(head) < 8 or size > MAX_ANSWER:
        return None
    body = outward.read(size)
    return cast(Mapping[str, object], json.loads(body)) if len(body) == size else None


RENDERER = Renderer()
