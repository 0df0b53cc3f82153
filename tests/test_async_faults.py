"""AsyncLLM: steps, threads and event loops that fail, closing in the middle, and requests that are wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from allotrope.errors import AllotropeError, RequestError, UsageError
from allotrope.runtime.asynchronous import AsyncEngine, Stream
from allotrope.runtime.mailbox import Letter, Outbox
from allotrope.runtime.outputs import RequestOutput
from allotrope.tokenizers import Tokenizer
from tests.async_kit import (
    KINDS,
    LONG,
    SHORT,
    Gate,
    alone,
    bare,
    engine_over,
    idle,
    parts,
    read,
    running,
    until,
    whole,
)
from tests.engines import LLAMA, plan_of, random_weights, write
from tests.loop_kit import Device, byte_tokenizer, opened


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def test_a_step_that_fails_once_ends_nobody(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        want = [await alone(tokenizer, [5] * (3 + i), params) for i, params in enumerate(KINDS)]
        for when in ("launch", "wait"):
            broken = {2, 9, 17, 31}
            device = Device(fails=lambda what, number: what == when and number in broken)  # noqa: B023
            async with engine_over(device, tokenizer) as engine:
                found = await asyncio.gather(*(engine.answer([5] * (3 + i), params) for i, params in enumerate(KINDS)))
                assert [bare(output) for output in found] == want

    running(test)


@pytest.mark.parametrize("when", ["launch", "wait"])
def test_a_request_that_breaks_every_step_ends_alone(tokenizer: Tokenizer, when: str) -> None:
    async def test() -> None:
        want = await alone(tokenizer, [5] * 3, LONG)
        device = Device()
        device.fails = lambda what, number: what == when and bool(99 in device.steps[number].tokens)
        async with engine_over(device, tokenizer) as engine:
            good = [asyncio.create_task(engine.answer([5] * 3, LONG)) for _ in range(2)]
            await until(lambda: engine.metrics()["output_tokens"] > 4)
            bad = await engine.answer([99], LONG)
            assert bad.error is not None and "the step failed: Broken" in bad.error
            assert bad.outputs[0].finish_reason == "error" and bad.outputs[0].token_ids == ()
            stream = engine.generate([99], LONG)
            [delta] = [delta async for delta in stream]
            assert delta.finish_reason == "error" and delta.error == stream.output().error
            assert [bare(await task) for task in good] == [want, want]
            assert engine.metrics()["finished"] == {"length": 2, "error": 2}

    running(test)


def test_a_device_that_is_gone_ends_every_request_and_no_other(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        gone = [True]
        device = Device(fails=lambda when, number: gone[0])
        async with engine_over(device, tokenizer) as engine:
            found = await asyncio.gather(*(engine.answer([5 + i], KINDS[i % 4]) for i in range(9)))
            assert {answer.finish_reason for output in found for answer in output.outputs} == {"error"}
            gone[0] = False
            assert bare(await engine.answer([5] * 3, LONG)) == await alone(tokenizer, [5] * 3, LONG)

    running(test)


def test_a_step_that_fails_when_all_in_it_have_left_stops_nothing(tokenizer: Tokenizer) -> None:
    reached, go = threading.Event(), threading.Event()

    def fails(when: str, number: int) -> bool:
        if (when, number) == ("wait", 2):  # step 3 has been launched
            reached.set()
            assert go.wait(20)
        return (when, number) == ("wait", 3)

    async def test() -> None:
        async with engine_over(Device(fails=fails), tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            await anext(stream)
            assert await asyncio.to_thread(reached.wait, 20)
            await stream.aclose()
            go.set()
            await until(lambda: not engine.metrics()["in_flight"])
            assert bare(await engine.answer([5] * 3, LONG)) == await alone(tokenizer, [5] * 3, LONG)

    running(test)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_thread_is_told_to_all_who_wait(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    async def test() -> None:
        engine = AsyncEngine(opened(Device(fails=gate), tokenizer))
        gate.let(3)
        stream = engine.generate([5] * 3, LONG)
        await read(stream, 1)
        others = [asyncio.create_task(engine.answer([6], LONG)) for _ in range(7)]
        await asyncio.sleep(0.05)

        def plan(hold_s: float) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(engine._loop.scheduler, "plan_step", plan)
        gate.let_all()
        for task in others:
            with pytest.raises(AllotropeError, match="the engine has stopped: ZeroDivisionError: a bug"):
                await task
        with pytest.raises(AllotropeError, match="the engine has stopped"):
            await whole(stream)
        for late in (engine.answer([5], SHORT), whole(engine.generate([5], SHORT))):
            with pytest.raises(AllotropeError, match="the engine has stopped"):
                await asyncio.wait_for(late, 5)
        engine.cancel(stream.request_id)
        await engine.close()

    running(test)


def test_closing_while_streaming(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        gate = Gate()
        device = Device(fails=gate)
        engine = AsyncEngine(opened(device, tokenizer))
        stream = engine.generate([5] * 3, LONG)
        gate.let(3)  # so that the answer cannot end before the engine is closed, however busy the machine
        [first] = await read(stream, 1)
        waiting = [asyncio.create_task(engine.answer([6 + i], LONG)) for i in range(9)]
        await asyncio.sleep(0)
        closing = [asyncio.create_task(engine.close()) for _ in range(2)]
        await until(lambda: engine._thread._closing)
        gate.let_all()
        await asyncio.gather(*closing)
        assert device.closed and not engine._loop.busy
        told = [first]
        with pytest.raises(UsageError, match="has been closed"):
            async for delta in stream:
                told.append(delta)
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, RequestOutput | UsageError) for one in done)
        with pytest.raises(UsageError, match="has been closed"):
            await engine.answer([5], SHORT)
        await engine.close()
        await stream.aclose()

    running(test)


def test_streams_that_leave_while_the_engine_says_farewell(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        gate = Gate()
        device = Device(fails=gate)
        engine = AsyncEngine(opened(device, tokenizer))
        streams = [engine.generate([5] * 3, LONG) for _ in range(4)]
        reading = [asyncio.create_task(anext(stream)) for stream in streams]
        await asyncio.sleep(0)  # all are queued; in so few steps no answer can end before the engine is closed
        gate.let(12)
        await asyncio.gather(*reading)
        send, left = Outbox.send, list(streams)

        def leaving(outbox: Outbox, letters: Sequence[Letter]) -> bool:
            if engine._thread._ended is not None and left:
                left.pop()._leave()  # as when it is collected in this moment
            return send(outbox, letters)

        monkeypatch.setattr(Outbox, "send", leaving)
        closing = asyncio.create_task(engine.close())
        await until(lambda: engine._thread._closing)
        gate.let_all()
        await closing
        assert device.closed and not left
        for stream in streams:
            with pytest.raises(UsageError, match="has been closed"):
                await whole(stream)

    running(test)


def test_one_task_reads_a_stream(tokenizer: Tokenizer) -> None:
    """A second reader is refused; it must not have the prompt queued twice."""

    async def test() -> None:
        async with engine_over(Device(), tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            stream._long = True  # read off the event loop, so that both ask before it is queued
            first, second = await asyncio.gather(whole(stream), anext(stream), return_exceptions=True)
            assert isinstance(second, UsageError) and "another task reads this stream" in str(second)
            assert first == parts(await engine.answer([5] * 3, LONG))
            assert engine.metrics()["finished"] == {"length": 2}

    running(test)


def test_a_stream_left_before_its_prompt_was_read_is_not_queued(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        async with engine_over(Device(), tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            stream._long = True
            task = asyncio.create_task(whole(stream))
            await asyncio.sleep(0)
            await stream.aclose()
            assert await task == []
            assert engine.metrics()["steps"] == 0 and not engine.metrics()["finished"]

    running(test)


def test_who_has_left_gets_nothing_more(tokenizer: Tokenizer) -> None:
    async def test() -> None:
        device = Device()
        async with engine_over(device, tokenizer) as engine:
            stream = engine.generate([5] * 3, LONG)
            await anext(stream)
            seen = len(device.steps)
            while len(device.steps) < seen + 5:  # letters gather, as the event loop is held up
                time.sleep(0.001)
            await stream.aclose()
            await idle(engine)
            assert await whole(stream) == []
            with pytest.raises(UsageError, match="has not ended"):
                stream.output()

    running(test)


def test_an_event_loop_that_ends_takes_its_requests_along(tokenizer: Tokenizer) -> None:
    device = Device(fails=lambda when, number: bool(time.sleep(0.002)))
    engine = AsyncEngine(opened(device, tokenizer))
    kept: list[Stream] = []

    async def first() -> None:
        kept.append(engine.generate([5] * 3, LONG))
        await read(kept[0], 1)

    async def second() -> None:
        await idle(engine)
        assert engine.metrics()["finished"] == {"abort": 1}
        assert bare(await engine.answer([5] * 3, SHORT)) == await alone(tokenizer, [5] * 3, SHORT)
        assert len(engine._outboxes) == 1
        await engine.close()

    asyncio.run(first())
    asyncio.run(second())


def test_a_program_that_ends_without_closing_ends_well(tmp_path: Path) -> None:
    """A thread in the middle of a step, while Python goes down around it, would abort the process."""
    folder = write(tmp_path / "llama", plan_of(LLAMA), random_weights(LLAMA))
    code = f"""
import time
import torch
from allotrope.api import AsyncLLM

def step():  # as one of a large model
    torch.ones(700, 700) @ torch.ones(700, 700)
    return []

engine = AsyncLLM({str(folder)!r}, threads=1)
type(engine._loop).busy, engine._loop.step = True, step
engine.cancel("nobody")  # wakes the thread
time.sleep(0.2)
print("the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


def test_event_loops_in_several_threads(tokenizer: Tokenizer) -> None:
    engine = AsyncEngine(opened(Device(), tokenizer))
    found: list[RequestOutput] = []

    async def ask() -> None:
        found.extend(await asyncio.gather(*(engine.answer([5] * 3, KINDS[2]) for _ in range(20))))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(engine.close())
    assert len(found) == 80 and len({bare(output) for output in found if not output.prompt_logprobs}) == 1


def test_bad_requests_say_so_and_leave_nothing_behind(tokenizer: Tokenizer) -> None:
    bad: list[tuple[Any, Any, dict[str, Any], str]] = [
        ({"text": "x"}, None, {}, r"prompt has the keys \['text'\]"),
        (5, None, {}, "prompt is of type int"),
        ([300], None, {}, r"prompt_token_ids\[0\] is 300; it must be from 0 to 299"),
        ([5] * 65, None, {}, "65 tokens long; the limit is 64"),
        ("x" * 100_000, None, {}, "100,000 bytes|100001 tokens long|100000 tokens long"),
        ([5], {"n": 2}, {}, "must be SamplingParams"),
        ([5], None, {"priority": 3}, r"priority\[0\] is 3; it must be 0 where the first come"),
        ([5], None, {"priority": 2**40}, r"priority\[0\] is 1099511627776; it must be a whole number from -2147483648"),
    ]

    async def test() -> None:
        async with engine_over(Device(), tokenizer) as engine:
            for prompt, params, named, message in bad:
                for _ in range(2):
                    with pytest.raises(RequestError, match=message):
                        await engine.answer(prompt, params, **named)
                    with pytest.raises(RequestError, match=message):
                        await whole(engine.generate(prompt, params, **named))
            with pytest.raises(UsageError, match="no chat template"):
                await whole(engine.chat([{"role": "user", "content": "x"}], SHORT))
            stream = engine.generate([5], SHORT)
            with pytest.raises(UsageError, match="has not ended"):
                stream.output()
            assert engine.metrics()["steps"] == 0

    running(test)
