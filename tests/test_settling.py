"""Weights that settle: the same bits before, meanwhile and after; nothing in memory twice; and when they stay."""

from __future__ import annotations

import gc
import mmap
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.api import LLM, SamplingParams
from allotrope.models.recipe import Mlp
from allotrope.runtime import native as executors
from allotrope.runtime import settling
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.settling import Settling
from tests.engines import LLAMA
from tests.native_kit import native_engine, native_executor, needs_core
from tests.test_eager import one_step

pytestmark = needs_core
MODEL = Path(__file__).parents[1] / "models" / "tinygal-draft"
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logprobs=0)
needs_huge_pages = pytest.mark.skipif(not settling.huge_pages(), reason="the system gives no huge pages")


def opened() -> LLM:
    return LLM(MODEL, device="cpu", tune="off", executor="native", threads=2)


def spoken(llm: LLM) -> Any:
    output = llm.generate("The cat", GREEDY)[0].outputs[0]
    return output.token_ids, output.cumulative_logprob


def resting(llm: LLM) -> NativeExecutor:
    executor = llm._executor
    assert isinstance(executor, NativeExecutor)
    return executor


@needs_huge_pages
def test_the_same_bits_wherever_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """None has moved when the first token is there; then a few before each step, as little as a slow one allows."""
    monkeypatch.setattr(settling, "_ROOM", 10**9)
    with opened() as llm:
        expected = spoken(llm)
        assert resting(llm)._settling.left == 0
    monkeypatch.undo()
    monkeypatch.setattr(settling, "SHARE", 1e-9)  # one weight before each step
    with opened() as llm:
        executor = resting(llm)
        before, count = dict(executor._settling.places), executor._settling.left
        assert count == len(before) > 10
        llm.generate("The cat", SamplingParams(max_tokens=1))
        assert executor._settling.places == before
        monkeypatch.setattr(settling, "SHARE", 1e9)
        assert spoken(llm) == expected and executor._settling.left == 0
        after = executor._settling.places
        assert {slot: size for slot, (_, size) in before.items()} == {slot: size for slot, (_, size) in after.items()}
        assert not {address for address, _ in before.values()} & {address for address, _ in after.values()}
        assert spoken(llm) == expected and 1e7 < executor.read_rate() < 1e13


@needs_huge_pages
def test_one_at_a_time_changes_nothing_meanwhile() -> None:
    with opened() as llm:
        expected = spoken(llm)
    seen = []
    with opened() as llm:
        llm.generate("The cat", SamplingParams(max_tokens=1))
        moving = resting(llm)._settling
        move, count = moving._core.move, moving.left

        class Slow:
            @staticmethod
            def move(*given: int) -> float:
                move(*given)
                return 1e9  # so that one is enough for a while

        moving._core = Slow
        while moving.left:
            moving._spent_s = 0.0
            assert spoken(llm) == expected
            seen.append(moving.left)
    assert seen == list(range(count - 1, -1, -1))


@pytest.mark.parametrize("lacking", ["pages", "memory", "addresses"])
def test_where_they_cannot_move_they_stay(lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "never").write_text("always madvise [never]")
    if lacking == "pages":
        monkeypatch.setattr(settling, "_HUGE_PAGES", tmp_path / "never")
        assert not settling.huge_pages()
    elif lacking == "memory":
        monkeypatch.setattr(settling, "available_memory", lambda: 1000)
    else:
        monkeypatch.setattr(Settling, "_begin", lambda self: 0)
    with opened() as llm:
        before = dict(resting(llm)._settling.places)
        said = spoken(llm)
        assert spoken(llm) == said and resting(llm)._settling.places == before and resting(llm)._settling.left == 0


@needs_huge_pages
@pytest.mark.parametrize("moves", [True, False])
def test_rows_that_were_looked_up_are_let_go_of(moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many tokens, once nothing else of the files is read; the next that asks for one finds it there."""
    with opened() as llm:
        expected = spoken(llm)
    monkeypatch.setattr(executors, "_WIDE", 0)
    monkeypatch.setattr(executors, "_MOST_LOOKED_UP", 5)
    monkeypatch.setattr(settling, "SHARE", 1e9)  # all at once
    if not moves:
        monkeypatch.setattr(Settling, "_begin", lambda self: 0)
    with opened() as llm:
        executor, calls = resting(llm), []
        assert executor._engine is not None
        forget = executor._engine.forget
        monkeypatch.setattr(executor._engine, "forget", lambda: calls.append(executor._settling.settled) or forget())
        assert [spoken(llm) for _ in range(3)] == [expected] * 3
    assert calls == ([True] * len(calls) if moves else []) and bool(calls) == moves


def test_a_system_that_knows_no_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settling, "_HUGE_PAGES", tmp_path / "nowhere")
    assert not settling.huge_pages()


@needs_huge_pages
def test_steps_of_many_tokens_ask_for_huge_pages() -> None:
    """For their buffers, once so many tokens come at a time; for keys and values from the first on."""

    def advised() -> int:
        gc.collect()  # or another test's memory goes meanwhile
        lines = Path("/proc/self/smaps").read_text().splitlines()
        return sum(line.startswith("VmFlags") and "hg" in line.split() for line in lines)

    recipe = replace(LLAMA, max_len=1024, blocks=(replace(LLAMA.blocks[0], mlp=Mlp(1024, "silu", gated=True)),))
    found = [advised()]
    runner = native_executor(native_engine(recipe), pages=200, max_tokens=1000, poison=False)
    found.append(advised())
    for size in (40, 63, 700):
        runner.run(one_step([5] * size, 1))
        found.append(advised())
    assert found[0] < found[1] == found[2] == found[3] < found[4]


@needs_huge_pages
def test_closing_gives_the_memory_back() -> None:
    with opened() as llm:
        spoken(llm)
        spoken(llm)
        kept, settled = weakref.ref(resting(llm)._settling._region), resting(llm)._settling
        assert kept() is not None
    assert kept() is None and settled._program is None


def test_memory_that_somebody_wrote_to_is_left_alone() -> None:
    runner = native_executor(native_engine(LLAMA))
    assert runner._settling.places and runner._settling.left == 0
    runner.run(one_step([5, 6, 7], 1))
    assert runner._settling.left == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("start", "size"), [(0, 1), (64, 4096), (100, 5_000_001), (4096, 2 << 20), (8, (6 << 20) + 64)]
)
def test_moving_copies_every_byte_and_leaves_the_file(tmp_path: Path, threads: int, start: int, size: int) -> None:
    path = tmp_path / "weights"
    given = np.random.default_rng(1).integers(0, 256, start + size + 9000, np.uint8)
    given.tofile(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    there = np.frombuffer(mapped, np.uint8)
    here = np.full(size + 2, 7, np.uint8)
    address = here.__array_interface__["data"][0]
    seconds = native.find().core.move(there.__array_interface__["data"][0] + start, address + 1, size, threads)
    assert 0 <= seconds < 60 and here[0] == here[-1] == 7
    np.testing.assert_array_equal(here[1:-1], given[start : start + size])
    np.testing.assert_array_equal(there, given)  # what was let go of comes back from the file
