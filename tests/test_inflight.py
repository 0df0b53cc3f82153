"""What in-flight batching, prefix reuse and the scheduler itself are worth. Ratios only, of runs in turn."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from allotrope import native
from allotrope.api import LLM
from allotrope.bench.drive import drive
from allotrope.bench.lengths import Lengths
from allotrope.bench.workload import Job, drawn, exactly, recorded
from allotrope.build import build
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe, Rotary
from allotrope.runtime.loop import Loop
from allotrope.runtime.request import Limits
from allotrope.runtime.scheduler import Scheduler
from allotrope.tokenizers import absent
from tests.engines import plan_of, random_weights, write
from tests.load_kit import Fake

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS = 8
PYCODER = Path(__file__).parents[1] / "models" / "pycoder"


@pytest.fixture(scope="module")
def stories(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inflight") / "engine"
    build(str(assets / "stories260K"), folder, device="cpu", dtype="fp32", tune="off", threads=1)
    return folder


def trace(assets: Path, llm: LLM, count: int) -> Sequence[Job]:
    path, limits = assets / "traces" / "azure_conv_2023.csv", llm.limits
    return recorded(path, count, speedup=1, scale=None, max_len=limits.max_len, vocab=limits.vocab, seed=0).jobs


def in_flight(llm: LLM, jobs: Sequence[Job]) -> None:
    """All at once: who ends makes room for the next."""
    llm.generate([list(job.prompt) for job in jobs], [job.params for job in jobs])


def static(llm: LLM, jobs: Sequence[Job]) -> None:
    """As many as there are slots, and the next ones when all of them have ended.

    Whoever ends early stays until then, as its row does in a static batch: the batch is one tensor. Its prompts are
    packed, though, which is kinder than that.
    """
    for batch in batches(jobs):
        longest = max(job.params.max_tokens for job in batch)
        in_flight(llm, [replace(job, params=exactly(longest)) for job in batch])


def padded(llm: LLM, jobs: Sequence[Job]) -> None:
    """Static batching as it was before: every row as long as the batch's longest, in its prompt and in its output."""
    for batch in batches(jobs):
        output = max(job.params.max_tokens for job in batch)
        width = min(max(len(job.prompt) for job in batch), llm.limits.max_len - output)
        rows = [(1,) * (width - len(job.prompt)) + tuple(job.prompt[:width]) for job in batch]
        in_flight(llm, [replace(job, prompt=row, params=exactly(output)) for job, row in zip(batch, rows, strict=True)])


def shrinking(llm: LLM, jobs: Sequence[Job]) -> None:
    """Static batching that lets rows go, which is kinder than any that exists."""
    for batch in batches(jobs):
        in_flight(llm, batch)


def batches(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    return (jobs[i : i + SLOTS] for i in range(0, len(jobs), SLOTS))


def steps(llm: LLM, run: Callable[[LLM, Sequence[Job]], None], jobs: Sequence[Job]) -> int:
    before = llm.metrics()["steps"]
    run(llm, jobs)
    return int(llm.metrics()["steps"] - before)


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    run()
    return clock() - began


def processor_seconds(llm: LLM, jobs: Sequence[Job]) -> float:
    """The least of three runs, in time of this process's own, so that others' work is left out."""
    return min(seconds(lambda: in_flight(llm, jobs), time.process_time) for _ in range(3))


def gain(
    llm: LLM,
    jobs: Sequence[Job],
    clock: Callable[[], float],
    before: Callable[[LLM, Sequence[Job]], None] = static,
    turns: int = 5,
) -> float:
    """How many times as many of the wanted tokens in-flight batching gives per second. Best of several, in turn."""
    taken = [
        (seconds(lambda: before(llm, jobs), clock), seconds(lambda: in_flight(llm, jobs), clock)) for _ in range(turns)
    ]
    return min(slow for slow, _ in taken) / min(fast for _, fast in taken)


def test_in_flight_batching_needs_fewer_steps(stories: Path, assets: Path) -> None:
    """Same slots, same executor, same tokens: what static batching loses is the waiting for each batch's longest."""
    with LLM(stories, threads=1, max_num_seqs=SLOTS, prefix_cache=False) as llm:
        jobs = trace(assets, llm, 64)
        assert steps(llm, shrinking, jobs) >= 1.6 * steps(llm, in_flight, jobs)


@pytest.mark.parametrize("executor", ["native", "eager"])
def test_in_flight_batching_beats_a_padded_batch(executor: str, assets: Path, tmp_path: Path) -> None:
    """Prompts included. One thread's own time, others' work left out."""
    if executor == "native" and (why := native.why_not()) is not None:
        pytest.skip(why)
    build(str(assets / "stories260K"), tmp_path, executor=executor, device="cpu", dtype="fp32", tune="off", threads=1)
    with LLM(tmp_path, threads=1, max_num_seqs=SLOTS, prefix_cache=False) as llm:
        jobs = trace(assets, llm, 32)
        in_flight(llm, jobs[:SLOTS])
        assert gain(llm, jobs, time.process_time, padded, turns=2) >= 1.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_in_flight_batching_decodes_faster(assets: Path, tmp_path: Path) -> None:
    """Prompts come from the prefix cache, whose small pages leave little of them to compute: decoding is compared.

    One thread's own time, others' work left out. Of pycoder, whose answers are long beside what a request costs once:
    stories260K's, of 20 tokens in the mean, give 1.5 with pages of 16 (docs/log.md).
    """
    build(str(PYCODER), tmp_path, device="cpu", dtype="fp32", tune="off", threads=1)
    with LLM(tmp_path, threads=1, max_num_seqs=SLOTS, kv_memory="512MiB", page_size=4) as llm:
        jobs = trace(assets, llm, 96)
        in_flight(llm, jobs)
        assert gain(llm, jobs, time.process_time) >= 1.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_native_core_carries_the_trace_ten_times_as_fast(stories: Path, assets: Path, tmp_path: Path) -> None:
    """Prompts included, with the same slots; one thread's own time, others' work left out."""
    if (why := native.why_not()) is not None:
        pytest.skip(why)
    build(str(assets / "stories260K"), tmp_path / "eager", device="cpu", dtype="fp32", threads=1, executor="eager")
    taken = []
    for engine in (tmp_path / "eager", stories):
        with LLM(engine, threads=1, max_num_seqs=SLOTS, prefix_cache=False) as llm:
            jobs = trace(assets, llm, 96)
            in_flight(llm, jobs[:SLOTS])
            taken.append(processor_seconds(llm, jobs))
    assert taken[0] >= 10 * taken[1]


@pytest.mark.gpu
def test_in_flight_batching_is_faster_on_a_gpu(assets: Path, tmp_path: Path) -> None:
    """Prompts included."""
    build("random:galactica-125m", tmp_path / "engine", device="cuda", dtype="fp16", tune="off")
    with LLM(tmp_path / "engine", max_num_seqs=SLOTS, max_len=1024, prefix_cache=False) as llm:
        jobs = trace(assets, llm, 64)
        in_flight(llm, jobs[:SLOTS])
        assert gain(llm, jobs, time.perf_counter) >= 1.6


def reader(folder: Path) -> Path:
    """An engine that takes prompts of over 1,000 tokens, and for which reading them is work."""
    block = Block(
        Attention(4, 2, 32, rotary=Rotary(dim=32, base=10000.0)), Mlp(384, "silu", gated=True), Norm("rms", 1e-5)
    )
    recipe = Recipe(vocab=300, hidden=128, max_len=1200, blocks=(block,) * 4, final_norm=Norm("rms", 1e-5))
    return write(folder, plan_of(recipe), random_weights(recipe))


def test_a_shared_prefix_is_not_read_twice(tmp_path: Path) -> None:
    """The second of two requests that share 1,000 tokens has its first token at least five times as fast."""
    source = np.random.default_rng(0)

    def once(llm: LLM) -> float:
        """How many times as fast the second is."""
        prefix = source.integers(3, 300, 1000).tolist()
        first, second = (prefix + source.integers(3, 300, 8).tolist() for _ in range(2))
        before = llm.metrics()["prefix_hit_tokens"]
        cold = seconds(lambda: llm.generate([first], exactly(1)))
        warm = seconds(lambda: llm.generate([second], exactly(1)))
        assert llm.metrics()["prefix_hit_tokens"] - before == 992  # 62 whole pages of 16
        return cold / warm

    with LLM(reader(tmp_path / "engine"), threads=1) as llm:
        once(llm)
        ratios = [once(llm) for _ in range(5)]
    assert statistics.median(ratios) >= 5, ratios


def scheduler_of(running: int) -> Scheduler:
    return Scheduler(running * 64, 16, running, 2048, 1024)


def interpreter_s() -> float:
    """What this interpreter takes, here and now, for as many looks, sums and appends as 64 rows' bookkeeping has.

    82 to 87 µs on the AVX2 machine of docs/log.md when nothing runs beside it.
    """
    held = SimpleNamespace(first=1, second=2, rows=[])
    began = time.perf_counter()
    for i in range(64):
        for _ in range(12):
            if held.first + i > held.second or not held.rows:
                held.rows.append(held.first + i)
                held.second = len(held.rows)
    return time.perf_counter() - began


def test_scheduling_costs_little() -> None:
    """Planning and committing a step of 64 requests that decode takes at most 150 µs: the median of a quiet moment.

    On a slower machine, or beside others' work, as much more as plain Python takes there at the same time.
    """
    slots, fake = 64, Fake()
    scheduler = scheduler_of(slots)
    loop = Loop(fake, scheduler, absent(), Limits(300, 1024))
    for i in range(slots):
        loop.submit(loop.prepare(None, [i + 1] * 20, exactly(900)))
    while scheduler.metrics().output_tokens < slots:
        loop.step()
    ratios = []
    for _ in range(8):
        taken, plain = [], []
        for _ in range(100):
            plain.append(interpreter_s())
            began = time.perf_counter()
            step = scheduler.plan_step()
            planned = time.perf_counter()
            assert step is not None and step.rows == slots
            output = fake.launch(step).wait()
            computed = time.perf_counter()
            assert len(scheduler.commit(output)) == slots
            taken.append(time.perf_counter() - computed + planned - began)
        slowness = max(statistics.median(plain) / 85e-6, 1)
        ratios.append(statistics.median(taken) / slowness)
    assert min(ratios) <= 150e-6, ratios


@pytest.mark.parametrize("thousands", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_memory_is_flat_over_thousands_of_requests(thousands: int) -> None:
    """Whoever has ended leaves nothing behind but counters; the prefix cache stays within its pages."""
    scheduler = Scheduler(400, 16, 32, 512, 256)
    loop = Loop(Fake(), scheduler, absent(), Limits(300, 256))
    short = Lengths(1, 30), Lengths(1, 4)

    def thousand(seed: int) -> int:
        """Serve a thousand requests; the bytes that are held afterwards."""
        jobs = drawn(1000, *short, rate=None, max_len=256, vocab=300, seed=seed).jobs
        driven = drive(loop, jobs)
        assert all(one.finish_reason == "length" for one in driven.times)
        del jobs, driven
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held = [thousand(seed) for seed in range(thousands)]
    finally:
        tracemalloc.stop()
    counted = scheduler.metrics()
    assert counted.finished == {"length": 1000 * thousands} and counted.pages_used == 0
    assert max(held[2:]) - held[1] < 7000 * (thousands - 2), held  # less than a pointer for each
