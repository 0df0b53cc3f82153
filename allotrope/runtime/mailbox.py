"""How deltas travel from the engine's thread to the tasks of an event loop, without either waiting for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from allotrope.errors import AllotropeError
from allotrope.runtime.outputs import Delta


@dataclass(frozen=True)
class Letter:
    """News for one mailbox. `over`: nothing follows; `error` makes what is then raised, anew for each who asks."""

    box: Mailbox
    deltas: Sequence[Delta] = ()
    over: bool = False
    error: Callable[[], AllotropeError] | None = None


class Mailbox:
    """What one reader has not read yet; never more than the rest of its own answers. Its event loop alone touches it.

    A reader that is slower than the engine gets what has gathered as one delta per answer.
    """

    def __init__(self) -> None:
        self.over = False
        self._error: Callable[[], AllotropeError] | None = None
        self._unread: dict[int, list[Delta]] = {}
        self._news = asyncio.Event()

    def put(self, letter: Letter) -> None:
        """Take news in, and wake the reader; one who has left gets no more, even of what was on its way."""
        if self.over:
            return
        for delta in letter.deltas:
            self._unread.setdefault(delta.output, []).append(delta)
        self.over, self._error = letter.over, letter.error
        self._news.set()

    def clear(self) -> None:
        """The reader has left: nothing more will be taken."""
        self._unread.clear()
        self.over, self._error = True, None
        self._news.set()

    async def take(self) -> Delta | None:
        """The next delta, once there is one; None at the end. An error comes after what was told before it."""
        while not self._unread and not self.over:
            self._news.clear()
            await self._news.wait()
        if self._unread:
            return _joined(self._unread.pop(next(iter(self._unread))))
        if self._error is not None:
            raise self._error()
        return None


def _joined(deltas: Sequence[Delta]) -> Delta:
    """One answer's deltas as one."""
    if len(deltas) == 1:
        return deltas[0]
    rows = [row for delta in deltas for row in delta.logprobs or ()]
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=None if deltas[-1].logprobs is None else tuple(rows),
    )


class Outbox:
    """Letters on their way to one event loop: however many gather, there is one wake-up."""

    def __init__(self, home: asyncio.AbstractEventLoop) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._letters: list[Letter] = []

    def send(self, letters: Sequence[Letter]) -> bool:
        """From the engine's thread. False: the event loop has been closed, and nobody will ever read them."""
        with self._lock:
            waiting = bool(self._letters)
            self._letters += letters
        if waiting:  # a delivery is on its way
            return not self._home.is_closed()
        try:
            self._home.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # closed
            return False
        return True

    def _deliver(self) -> None:
        with self._lock:
            letters, self._letters = self._letters, []
        for letter in letters:
            letter.box.put(letter)
