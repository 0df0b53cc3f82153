"""The thread that drives a loop for asyncio: takes orders, steps, and writes letters to whoever reads.

Orders wait in a queue that is emptied before each step, so a request is cancelled within one step. With
nothing to do the thread sleeps until it is woken.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from allotrope.errors import AllotropeError, UsageError
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import STREAMED_HOLD_S, Loop
from allotrope.runtime.mailbox import Letter, Mailbox, Outbox

_log = logging.getLogger(__name__)
_PATIENCE_S = 30.0  # for the step at hand, when the program ends


@dataclass(frozen=True)
class Reader:
    """Who reads a generation."""

    generation: Generation
    box: Mailbox
    outbox: Outbox
    whole: bool  # is only told of the end


class EngineThread:
    """Drives one loop until it is closed.

    A step that fails is tried again. If it fails again, the newest request in it ends with an error, and so on
    until a step succeeds: memory that ran out may do for the rest, and a request that breaks every step it is
    in goes before any older one. If the loop itself fails, the thread ends, and everyone who waits is told.
    """

    def __init__(self, loop: Loop, at_end: Callable[[], None]) -> None:
        self._loop, self._at_end = loop, at_end
        self._wake = threading.Condition()  # reentrant: a stream may be collected, and so leave, at any moment
        self._orders: deque[Callable[[], None]] = deque()
        self._closing = False
        self._ended: Callable[[], AllotropeError] | None = None  # why it has
        self._readers: dict[str, Reader] = {}
        self._failures = 0  # in a row
        self._thread = threading.Thread(target=self._drive, name="allotrope-engine", daemon=True)
        self._thread.start()
        # A thread that computes while Python goes down takes the process with it; one that hangs must not hold it up.
        atexit.register(self.close, _PATIENCE_S)

    def submit(self, reader: Reader) -> None:
        """Queue a request; its reader is told all that becomes of it, even that the engine has been closed."""
        self._order(partial(self._submit, reader))

    def cancel(self, request_id: str, *, forget: bool = False) -> None:
        """End a request, if it runs; `forget`: nobody reads it any more."""
        self._order(partial(self._cancel, request_id, forget))

    def close(self, patience_s: float | None = None) -> None:
        """End what runs, and the thread; returns when it has ended, or patience has."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience_s)
        atexit.unregister(self.close)

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()
            if self._ended is not None:  # nobody else will look
                self._obey()

    def _drive(self) -> None:
        try:
            while self._wait():
                self._obey()
                self._step()
            for reader in self._readers.values():
                self._loop.cancel(reader.generation)
            self._loop.drain()
        finally:
            error = sys.exception()
            with self._wake:
                self._ended = _closed if error is None else partial(_stopped, f"{type(error).__name__}: {error}")
                self._obey()
                waiting, self._readers = self._readers, {}  # orders of other threads find nobody from now on
            for reader in waiting.values():
                reader.outbox.send([Letter(reader.box, over=True, error=self._ended)])
            self._at_end()

    def _wait(self) -> bool:
        """Sleep until there is something to do. False: the thread is to end."""
        with self._wake:
            while not (self._orders or self._closing or self._loop.busy):
                self._wake.wait()
            return not self._closing

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _submit(self, reader: Reader) -> None:
        error = self._ended
        if error is None:
            try:
                self._loop.submit(reader.generation, STREAMED_HOLD_S)
            except AllotropeError as refused:
                error = partial(type(refused), refused.problem, where=refused.where, remedy=refused.remedy)
        if error is not None:
            reader.outbox.send([Letter(reader.box, over=True, error=error)])
        else:
            self._readers[reader.generation.id] = reader

    def _cancel(self, request_id: str, forget: bool) -> None:
        reader = self._readers.get(request_id)
        if reader is None:
            return
        self._loop.cancel(reader.generation)
        if forget:
            del self._readers[request_id]
        else:
            self._tell([reader])

    def _step(self) -> None:
        try:
            changed = self._loop.step()
        except Exception as error:
            if not self._survives(error):
                raise
            self._tell(list(self._readers.values()))
            return
        if changed:
            self._failures = 0
        self._tell([self._readers[one.id] for one in changed if one.id in self._readers])

    def _survives(self, error: Exception) -> bool:
        """Whether trying again may help; ends the newest request of a step that has failed again."""
        suspects = self._loop.suspects
        if suspects is None:
            return False
        self._failures += 1
        _log.warning("a step failed: %s: %s", type(error).__name__, error)
        if self._failures > 1 and suspects:
            reason = str(error) if isinstance(error, AllotropeError) else type(error).__name__
            self._loop.fail(suspects[-1], f"request {suspects[-1].id}: the step failed: {reason}")
        return True

    def _tell(self, readers: Iterable[Reader]) -> None:
        """Send what is new, one packet per event loop; whoever's event loop has gone is cancelled."""
        packets: dict[Outbox, list[Reader]] = {}
        for reader in readers:
            packets.setdefault(reader.outbox, []).append(reader)
        for outbox, addressed in packets.items():
            letters = [letter for reader in addressed if (letter := self._letter(reader)) is not None]
            if letters and not outbox.send(letters):
                for reader in addressed:
                    self._loop.cancel(reader.generation)
                    self._readers.pop(reader.generation.id, None)

    def _letter(self, reader: Reader) -> Letter | None:
        over = reader.generation.ended
        deltas = () if reader.whole else tuple(reader.generation.news())
        if over:
            del self._readers[reader.generation.id]
        return Letter(reader.box, deltas, over) if over or deltas else None


def _closed() -> AllotropeError:
    return UsageError("this engine has been closed", remedy="make a new one")


def _stopped(why: str) -> AllotropeError:
    return AllotropeError(f"the engine has stopped: {why}", remedy="make a new one")
