"""AsyncLLM: many tasks on one engine, leaving in every way, slow readers, and idleness."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from allotrope.runtime.asynchronous import AsyncEngine
from allotrope.runtime.outputs import RequestOutput
from allotrope.tokenizers import Tokenizer
from tests.async_kit import KINDS, LONG, SHORT, Gate, alone, bare, engine_over, idle, parts, read, running, until, whole
from tests.loop_kit import Device, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.mark.parametrize(("skip", "check", "pages"), [(0, 1, 64), (5, 4, 64), (1000, 1, 20)])
def test_many_tasks_each_get_their_own(tokenizer: Tokenizer, skip: int, check: int, pages: int) -> None:
    async def test() -> None:
        asked = [([5 + i % 7] * (1 + i % 13), KINDS[i % len(KINDS)]) for i in range(60)]
        expected = {
            (tuple(p), k): await alone(tokenizer, p, k) for p, k in dict.fromkeys((tuple(p), k) for p, k in asked)
        }

        async def task(i: int, engine: AsyncEngine) -> None:
            prompt, params = asked[i]
            want = expected[tuple(prompt), params]
            await asyncio.sleep(random.Random(i).random() * 0.05)
            if i % 3:
                stream = engine.generate(prompt, params)
                assert await whole(stream) == parts(want)
                assert bare(stream.output()) == want
            else:
                assert bare(await engine.answer(prompt, params)) == want

        async with engine_over(Device(pages=pages), tokenizer, skip=skip, check=check) as engine:
            await asyncio.gather(*(task(i, engine) for i in range(60)))
            ended = engine.metrics()["finished"]
            assert set(ended) == {"stop", "length"} and sum(ended.values()) == 60 + 10

    running(test)


async def leave_by_break(engine: AsyncEngine) -> None:
    count = 0
    async for _ in engine.generate([5] * 3, LONG):
        count += 1
        if count == 3:
            break


async def leave_by_exception(engine: AsyncEngine) -> None:
    async for _ in engine.generate([5] * 3, LONG):
        raise ValueError("the consumer's own")


async def leave_by_context(engine: AsyncEngine) -> None:
    async with engine.generate([5] * 3, LONG) as kept:
        await read(kept, 2)
    assert [delta async for delta in kept] == []


async def leave_by_close(engine: AsyncEngine) -> None:
    kept = engine.generate([5] * 3, LONG)
    await read(kept, 2)
    await kept.aclose()
    await kept.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(kept)


async def leave_by_task(engine: AsyncEngine) -> None:
    stream = engine.generate([5] * 3, LONG)
    task = asyncio.create_task(whole(stream))
    await until(lambda: engine.metrics()["output_tokens"] > 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await until(lambda: engine.metrics()["finished"].get("abort") == 1)
    assert stream.request_id, "it was not because nobody held it"


async def leave_by_answer(engine: AsyncEngine) -> None:
    task = asyncio.create_task(engine.answer([5] * 3, LONG))
    await until(lambda: engine.metrics()["output_tokens"] > 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_timeout(engine: AsyncEngine) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            while True:
                await engine.answer([5] * 3, LONG)


async def leave_in_a_cycle(engine: AsyncEngine) -> None:
    ring: list[Any] = [engine.generate([5] * 3, LONG)]
    await read(ring[0], 2)
    ring.append(ring)
    del ring
    gc.collect()


LEAVING = [
    leave_by_break,
    leave_by_exception,
    leave_by_context,
    leave_by_close,
    leave_by_task,
    leave_by_answer,
    leave_by_timeout,
    leave_in_a_cycle,
]


@pytest.mark.parametrize("leave", LEAVING)
def test_leaving_cancels(tokenizer: Tokenizer, leave: Callable[[AsyncEngine], Coroutine[Any, Any, None]]) -> None:
    """The request ends, its pages come back, and whoever shares the batch notices nothing."""

    def slow(when: str, number: int) -> bool:
        time.sleep(0.002 if when == "wait" else 0)
        return False

    async def test() -> None:
        want = await alone(tokenizer, [7, 8], KINDS[2])
        async with engine_over(Device(fails=slow), tokenizer) as engine:
            other = asyncio.create_task(engine.answer([7, 8], KINDS[2]))
            with contextlib.suppress(ValueError):
                await leave(engine)
            await idle_but(engine, other)
            assert bare(await other) == want
            assert engine.metrics()["finished"].get("abort", 0) == 1
            assert bare(await engine.answer([7, 8], KINDS[2])) == want

    running(test)


async def idle_but(engine: AsyncEngine, other: asyncio.Task[RequestOutput]) -> None:
    await until(lambda: engine.metrics()["running"] <= (not other.done()))


@pytest.mark.parametrize("way", ["break", "cancel"])
def test_a_request_is_cancelled_within_one_step(tokenizer: Tokenizer, way: str) -> None:
    gate = Gate()
    device = Device(fails=gate)

    async def test() -> None:
        async with engine_over(device, tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            gate.let(4)
            first = await read(stream, 1)
            await until(lambda: len(device.steps) == 6)  # the sixth is launched while the fifth is waited for
            if way == "break":
                del stream
            else:
                engine.cancel(stream.request_id)
            gate.let_all()
            if way == "cancel":
                rest = [delta async for delta in stream]
                assert [delta.finish_reason for delta in rest][-1] == "abort"
                ids = [token for delta in first + rest for token in delta.token_ids]
                assert len(ids) in (4, 5) and stream.output().outputs[0].token_ids == tuple(ids)
                engine.cancel(stream.request_id)  # it has ended: nothing happens
            await idle(engine)
            assert len(device.steps) <= 7

    running(test)


def test_a_slow_reader_stalls_nobody_and_misses_nothing(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        want = await alone(tokenizer, [5] * 3, KINDS[3])
        async with engine_over(Device(), tokenizer) as engine:
            slow = engine.generate([5] * 3, KINDS[3])
            deltas = await read(slow, 1)
            for _ in range(5):
                await engine.answer([6], LONG)
            deltas += [delta async for delta in slow]
            assert len(deltas) <= 4, "what had gathered was not merged"
            for i, answer in enumerate(want.outputs):
                mine = [delta for delta in deltas if delta.output == i]
                assert "".join(delta.text for delta in mine) == answer.text
                assert tuple(token for delta in mine for token in delta.token_ids) == answer.token_ids
                assert tuple(row for delta in mine for row in delta.logprobs or ()) == answer.logprobs

    running(test)


def test_an_event_loop_that_is_held_up_is_not_flooded(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        async with engine_over(Device(), tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            deltas = await read(stream, 1)
            scheduled: list[object] = []
            loop = asyncio.get_running_loop()
            real = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = lambda *given, **named: (scheduled.append(given), real(*given, **named))[1]  # type: ignore[assignment,method-assign]
            deadline = time.monotonic() + 20
            while engine._loop.busy and time.monotonic() < deadline:
                time.sleep(0.01)
            loop.call_soon_threadsafe = real  # type: ignore[method-assign]
            assert len(scheduled) <= 2
            deltas += [delta async for delta in stream]
            assert sum(len(delta.token_ids) for delta in deltas) == 50

    running(test)


def test_idle_means_no_work_and_no_wake_up_is_lost(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        async with engine_over(Device(ready=lambda number: True), tokenizer) as engine:
            chance = random.Random(0)
            for i in range(300):
                await asyncio.sleep(chance.choice((0, 0, 0.0001, 0.001)))
                assert len((await asyncio.wait_for(engine.answer([5 + i % 50], SHORT), 20)).outputs) == 1
            ident = engine._thread._thread.ident
            assert ident is not None
            clock = time.pthread_getcpuclockid(ident)
            await idle(engine)
            await asyncio.sleep(0.05)
            before = time.clock_gettime(clock)
            await asyncio.sleep(0.5)
            assert time.clock_gettime(clock) - before < 0.0005

    running(test)


def test_priorities_decide_who_comes_first(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        order: list[int] = []
        gate = Gate()

        async def ask(engine: AsyncEngine, rank: int) -> None:
            await engine.answer([5 + rank], SHORT, priority=rank)
            order.append(rank)

        async with engine_over(Device(fails=gate), tokenizer, policy="priority", max_num_seqs=1) as engine:
            first = asyncio.create_task(ask(engine, 9))
            await until(lambda: engine.metrics()["running"] == 1)
            tasks = [asyncio.create_task(ask(engine, rank)) for rank in (4, 1, 3, 2)]
            await asyncio.sleep(0.05)
            gate.let_all()
            await asyncio.gather(first, *tasks)
            assert order == [9, 1, 2, 3, 4]

    running(test)
