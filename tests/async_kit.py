"""What the tests of asynchronous engines share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from allotrope.runtime.asynchronous import AsyncEngine, Stream
from allotrope.runtime.outputs import Delta, RequestOutput
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.tokenizers import Tokenizer
from tests.loop_kit import Device, opened

LONG = SamplingParams(max_tokens=50, temperature=0, ignore_eos=True, seed=1)
SHORT = replace(LONG, max_tokens=5)
KINDS = [
    SHORT,
    LONG,
    SamplingParams(max_tokens=20, temperature=1.0, seed=4),
    SamplingParams(max_tokens=12, temperature=1.0, seed=5, n=2, logprobs=1),
    SamplingParams(max_tokens=6, temperature=0, beams=2, n=2, seed=1),
    replace(LONG, repetition_penalty=1.5, stop=["8"], prompt_logprobs=1),
]


@dataclass
class Gate:
    """Lets a device end one step at a time."""

    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    open: bool = False

    def __call__(self, when: str, number: int) -> bool:
        if when == "wait" and not self.open:
            assert self.steps.acquire(timeout=20)
        return False

    def let(self, steps: int) -> None:
        self.steps.release(steps)

    def let_all(self) -> None:
        self.open = True
        self.steps.release(1000)


def running(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test, in asyncio's debug mode: a callback from the wrong thread is an error."""
    asyncio.run(asyncio.wait_for(test(), 60), debug=True)


@asynccontextmanager
async def engine_over(device: Device, tokenizer: Tokenizer, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine; at the end it must be as at the beginning."""
    async with AsyncEngine(opened(device, tokenizer, **options)) as engine:
        yield engine
        await idle(engine)
    assert device.closed


async def idle(engine: AsyncEngine) -> None:
    """Wait until nothing runs; whoever has left must have given everything back."""
    for _ in range(2000):
        found = engine.metrics()
        if not any(found[name] for name in ("waiting", "running", "in_flight", "pages_used")):
            break
        await asyncio.sleep(0.005)
    else:
        raise AssertionError(f"still at work: {found}")
    assert not engine._loop._live and not engine._thread._readers


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came to be")


async def whole(stream: Stream) -> list[list[Any]]:
    """Text, ids, end and log-probabilities of each answer, from its deltas."""
    told: dict[int, list[Any]] = {}
    async for delta in stream:
        one = told.setdefault(delta.output, ["", (), None, ()])
        assert delta.request_id == stream.request_id and one[2] is None
        one[0] += delta.text
        one[1] += delta.token_ids
        one[2] = delta.finish_reason
        one[3] += delta.logprobs or ()
    return [told[i] for i in sorted(told)]


def parts(output: RequestOutput) -> list[list[Any]]:
    return [[one.text, one.token_ids, one.finish_reason, one.logprobs or ()] for one in output.outputs]


def bare(output: RequestOutput) -> RequestOutput:
    return replace(output, request_id="", num_cached_tokens=0)


async def alone(tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> RequestOutput:
    async with engine_over(Device(ready=lambda number: True), tokenizer) as engine:
        return bare(await engine.answer(prompt, params))


async def read(stream: Stream, count: int) -> list[Delta]:
    return [await anext(stream) for _ in range(count)]
