"""An engine for asyncio: many tasks submit, read and leave; a thread of its own does the work.

    tasks ──orders──► engine's thread ──letters──► event loop ──► each reader's mailbox

Letters wait in an outbox that the event loop empties when it comes to it, deltas in a mailbox until they are
read. Neither grows beyond the answers themselves: a slow reader finds its deltas merged into one per answer,
nothing is dropped, and nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from allotrope.errors import UsageError
from allotrope.runtime.engine_thread import EngineThread, Reader
from allotrope.runtime.generation import Generation
from allotrope.runtime.mailbox import Mailbox, Outbox
from allotrope.runtime.opening import Opened
from allotrope.runtime.outputs import Delta, RequestOutput
from allotrope.runtime.prompts import Messages, Prompt, params_for, priorities_for
from allotrope.runtime.sampling_params import SamplingParams

_LONG = 1 << 14  # characters, or ids: longer prompts are read off the event loop


class AsyncEngine:
    """An opened engine that many tasks share. Use it as an async context manager, or `close` it."""

    def __init__(self, opened: Opened) -> None:
        self._opened, self._loop = opened, opened.loop
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}
        self._making = threading.Lock()
        self._thread = EngineThread(opened.loop, at_end=opened.executor.close)

    def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0) -> Stream:
        """Answer a prompt: `async for delta in engine.generate(…)`. It is queued with the first `anext`."""
        return self._stream(lambda: prompt, sampling_params, priority, long=_is_long(prompt))

    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> Stream:
        """As `generate`, for a conversation as the checkpoint's template writes it."""
        conversation = partial(self._opened.reader.conversation, messages, tools, variables)
        return self._stream(conversation, sampling_params, priority, long=True)

    async def answer(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> RequestOutput:
        """The whole answer, once it is there."""
        stream = self._stream(lambda: prompt, sampling_params, priority, long=_is_long(prompt), whole=True)
        async for _ in stream:
            pass
        return stream.output()

    def cancel(self, request_id: str) -> None:
        """End a request within one step: its reader gets what there is, and the finish reason `abort`.

        A request that has ended, or whose first delta nobody has asked for, is left as it is.
        """
        self._thread.cancel(request_id)

    def metrics(self) -> dict[str, Any]:
        """The engine's counters."""
        return self._loop.metrics()

    async def close(self) -> None:
        """Give memory back. Whoever still reads gets an error, and so does generating from now on."""
        await asyncio.to_thread(self._thread.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _stream(
        self,
        prompt: Callable[[], Prompt],
        sampling_params: SamplingParams | None,
        priority: int,
        *,
        long: bool,
        whole: bool = False,
    ) -> Stream:
        [params] = params_for(sampling_params, 1)
        [checked] = priorities_for(priority, 1, self._opened.policy)
        number = self._loop.number()

        def prepare() -> Generation:
            text, ids = self._opened.reader.read(prompt(), "prompt")
            self._opened.reader.check(params)
            return self._loop.prepare(text, ids, params, priority=checked, number=number)

        return Stream(str(number), prepare, partial(self._submit, whole=whole), self._thread, long=long)

    def _submit(self, generation: Generation, box: Mailbox, *, whole: bool) -> None:
        home = asyncio.get_running_loop()
        with self._making:  # event loops run in threads of their own
            if home not in self._outboxes:
                self._outboxes = {loop: outbox for loop, outbox in self._outboxes.items() if not loop.is_closed()}
                self._outboxes[home] = Outbox(home)
            outbox = self._outboxes[home]
        self._thread.submit(Reader(generation, box, outbox, whole))


class Stream:
    """One request's deltas, as they come.

    Leaving cancels the request: `break`, an exception or the end of a task drops the stream, and cancelling the
    task that waits for a delta ends it at once. Where something else keeps the stream alive (a variable, a
    traceback), `async with stream:` or `aclose` says when it is left. One task reads.
    """

    def __init__(
        self,
        request_id: str,
        prepare: Callable[[], Generation],
        submit: Callable[[Generation, Mailbox], None],
        thread: EngineThread,
        *,
        long: bool,
    ) -> None:
        self.request_id = request_id
        self._prepare, self._submit, self._thread, self._long = prepare, submit, thread, long
        self._generation: Generation | None = None
        self._box = Mailbox()
        self._reading = self._left = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        if self._reading:
            raise UsageError("another task reads this stream", remedy="give each task a stream of its own")
        self._reading = True
        try:
            if self._generation is None and not self._box.over:
                generation = await asyncio.to_thread(self._prepare) if self._long else self._prepare()
                if not self._box.over:  # it may have been left meanwhile
                    self._generation = generation
                    self._submit(generation, self._box)
            delta = await self._box.take()
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._reading = False
        if delta is None:
            raise StopAsyncIteration
        return delta

    def output(self) -> RequestOutput:
        """The whole answer, after the last delta."""
        if self._generation is None or not self._box.over or self._left:
            raise UsageError("the answer has not ended", remedy="read the stream to its end")
        return self._generation.output()

    async def aclose(self) -> None:
        """Leave. Nothing more is given out, and the request is cancelled if it runs."""
        self._leave()
        self._left = self._left or not self._box.over
        self._box.clear()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._generation is not None and not self._box.over:
            self._thread.cancel(self.request_id, forget=True)


def _is_long(prompt: object) -> bool:
    """Whether reading the prompt could hold the event loop up."""
    given = next(iter(prompt.values()), None) if isinstance(prompt, Mapping) else prompt
    return isinstance(given, str | list | tuple) and len(given) > _LONG
