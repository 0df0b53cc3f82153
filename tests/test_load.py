"""Under load: whoever shares the batch, a request's tokens and the bits of its log-probabilities are its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope import native
from allotrope.bench.lengths import Lengths
from allotrope.bench.workload import Job, drawn, exactly, recorded
from allotrope.build import build
from allotrope.runtime.opening import Opened
from tests.load_kit import Bits, alone, answers, mixed, opened

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = 8
CI, WHOLE = 40, 500
EXECUTORS = ("eager", "native")


def available(executor: str) -> None:
    """Skip what needs a core that was not compiled here."""
    found = native.find()
    if executor == "native" and found.core is None:
        pytest.skip(str(found.why))


@pytest.fixture(scope="module", params=EXECUTORS)
def engine(request: pytest.FixtureRequest, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    available(request.param)
    folder = tmp_path_factory.mktemp("load") / "engine"
    options = {"device": "cpu", "dtype": "fp32", "tune": "off", "threads": 1, "executor": request.param}
    build(str(assets / "stories260K"), folder, **options)
    return folder


def trace_jobs(assets: Path, found: Opened, count: int) -> list[Job]:
    """The trace's first requests, 200 times as fast, scaled to the model's length, decoded in several ways."""
    path = assets / "traces" / "azure_conv_2023.csv"
    limits = found.limits
    load = recorded(path, count, speedup=200, scale=None, max_len=limits.max_len, vocab=limits.vocab, seed=0)
    return [mixed(job, i) for i, job in enumerate(load.jobs)]


def pages_of(job: Job, size: int) -> int:
    """KV pages that a request holds in the end."""
    return -(-(len(job.prompt) + job.params.max_tokens - 1) // size)


def a_fifth(jobs: list[Job], size: int) -> int:
    """Pages for a fifth of the load, and for the largest request."""
    needed = [pages_of(job, size) for job in jobs]
    return max(sum(needed) // 5, *needed)


def growing_jobs(found: Opened) -> list[Job]:
    """Answers several times as long as their prompts, all at once: who is admitted does not know what it will need."""
    lengths = Lengths(1, 10), Lengths(15, 45)
    load = drawn(CI, *lengths, rate=None, max_len=found.limits.max_len, vocab=found.limits.vocab, seed=0)
    return [mixed(job, i) for i, job in enumerate(load.jobs)]


class Proof:
    """A load, and what each of its requests gets alone."""

    def __init__(self, engine: Path, load: Callable[[Opened], list[Job]]) -> None:
        self.engine = engine
        with opened(engine, page_size=PAGE, max_num_seqs=1, prefix_cache=False) as found:
            self.jobs = load(found)
            self.expected = alone(found.loop, self.jobs)
        assert len({tokens for tokens, _, _ in self.expected}) > 0.8 * len(self.jobs)

    def holds(self, pages: int | None = None, **options: Any) -> dict[str, Any]:
        """Every request gets under load what it gets alone; returns what the runtime counted."""
        with opened(self.engine, pages, **{"page_size": PAGE, **options}) as found:
            got = answers(found.loop, self.jobs)
            differing = [i for i, (a, b) in enumerate(zip(got, self.expected, strict=True)) if a != b]
            assert not differing, f"{len(differing)} of {len(got)} differ, the first is request {differing[0]}"
            return found.loop.metrics()


LOADS: dict[str, dict[str, Any]] = {
    "as it comes": {"max_num_seqs": 64},
    "eight at once": {"max_num_seqs": 8},
    "chunks of 16": {"max_num_seqs": 12, "max_batched_tokens": 16},
    "no prefix cache": {"max_num_seqs": 64, "prefix_cache": False},
    "looked at every 8 steps": {"max_num_seqs": 16, "check_step": 8, "skip_step": 5},
    "pages of 5": {"max_num_seqs": 16, "page_size": 5},
}


@pytest.fixture(scope="module")
def proof(engine: Path, assets: Path) -> Proof:
    return Proof(engine, lambda found: trace_jobs(assets, found, CI))


@pytest.fixture(scope="module")
def growing(engine: Path) -> Proof:
    return Proof(engine, growing_jobs)


@pytest.mark.parametrize("name", LOADS)
def test_everyone_gets_what_they_get_alone(proof: Proof, name: str) -> None:
    counted = proof.holds(**LOADS[name])
    assert counted["finished"] == {"length": CI}


SHORT_OF_PAGES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "looked at every 8 steps": {"check_step": 8},
    "chunks of 16": {"max_batched_tokens": 16},
    "no prefix cache": {"prefix_cache": False},
}


@pytest.mark.parametrize("name", SHORT_OF_PAGES)
def test_with_pages_for_a_fifth_of_the_load(proof: Proof, growing: Proof, name: str) -> None:
    """Not everybody fits: some give way, are computed again, and still get the same bits."""
    for one in (proof, growing):
        counted = one.holds(a_fifth(one.jobs, PAGE), max_num_seqs=CI, **SHORT_OF_PAGES[name])
        assert counted["pages_used"] == 0
    assert counted["preemptions"] >= 4


def test_in_another_order_and_after_a_restart(proof: Proof) -> None:
    """Nothing of an answer comes from who was there before, nor from the process's memory."""
    places = list(range(CI))
    random.Random(0).shuffle(places)
    with opened(proof.engine, page_size=PAGE, max_num_seqs=16) as found:
        shuffled = [replace(proof.jobs[place], arrival=0.0) for place in places]
        first = answers(found.loop, shuffled)
        again = answers(found.loop, shuffled)  # now their prompts lie in the prefix cache
        assert found.loop.metrics()["prefix_hit_tokens"] > 0
    assert first == again == [proof.expected[place] for place in places]


def test_the_proof_can_fail(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer's last bit, changed on purpose, is seen."""
    tokens, logprobs, candidates = proof.expected[3]
    spoilt: list[Bits] = list(proof.expected)
    spoilt[3] = (tokens, bytes([logprobs[0] ^ 1]) + logprobs[1:], candidates)
    monkeypatch.setattr(proof, "expected", spoilt)
    with pytest.raises(AssertionError, match="1 of 40 differ, the first is request 3"):
        proof.holds(max_num_seqs=8)


def repeats(engine: Path, count: int, **options: Any) -> set[Bits]:
    """The answers to one greedy request, asked `count` times among others of every length that come and go."""
    source = np.random.default_rng(1)
    wanted = Job(0.0, tuple(source.integers(3, 500, 21).tolist()), exactly(6))
    jobs = []
    for i in range(count):
        jobs.append(wanted)
        for _ in range(int(source.integers(0, 3))):
            prompt = tuple(source.integers(3, 500, int(source.integers(1, 40))).tolist())
            jobs.append(mixed(Job(0.0, prompt, exactly(int(source.integers(1, 9)))), i))
    with opened(engine, page_size=PAGE, **options) as found:
        got = answers(found.loop, jobs)
    asked = [answer for job, answer in zip(jobs, got, strict=True) if job is wanted]
    assert len(asked) == count
    return set(asked)


@pytest.mark.parametrize(
    "options",
    [{"max_num_seqs": 13}, {"max_num_seqs": 24, "max_batched_tokens": 50, "prefix_cache": False, "check_step": 4}],
    ids=["cached", "computed"],
)
def test_one_request_has_one_answer(engine: Path, options: dict[str, Any]) -> None:
    assert len(repeats(engine, 60, **options)) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_repeats_have_one_answer(engine: Path) -> None:
    whole = repeats(engine, 1000, max_num_seqs=24, prefix_cache=False)
    assert len(whole) == 1
    assert repeats(engine, 1000, max_num_seqs=13, max_batched_tokens=40, check_step=8) == whole


BUNDLED = sorted(path.parent for path in (Path(__file__).parents[1] / "models").glob("*/config.json"))
NAMES = ("stories260K", *(path.name for path in BUNDLED))
WHOLE_PROOFS = [("stories260K", "bf16", "eager")] + [
    (name, "fp32", executor) for executor in EXECUTORS for name in NAMES
]


@cache
def whole_proof(name: str, dtype: str, executor: str, assets: Path, folder: Path) -> Proof:
    """Of an engine tuned as users' are; one for all loads that a process is given."""
    available(executor)
    source, engine = (
        {path.name: path for path in BUNDLED}.get(name, assets / name),
        folder / f"{name}-{dtype}-{executor}",
    )
    build(str(source), engine, device="cpu", dtype=dtype, tune="fast", threads=1, executor=executor)
    return Proof(engine, lambda found: trace_jobs(assets, found, WHOLE))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("name", "dtype", "executor"), WHOLE_PROOFS)
def test_five_hundred_requests(
    assets: Path, tmp_path_factory: pytest.TempPathFactory, name: str, dtype: str, executor: str, load: str
) -> None:
    """The whole proof."""
    proof = whole_proof(name, dtype, executor, assets, tmp_path_factory.getbasetemp())
    assert proof.holds(**LOADS[load])["finished"] == {"length": WHOLE}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("load", SHORT_OF_PAGES)
@pytest.mark.parametrize(("name", "dtype", "executor"), WHOLE_PROOFS)
def test_five_hundred_requests_short_of_pages(
    assets: Path, tmp_path_factory: pytest.TempPathFactory, name: str, dtype: str, executor: str, load: str
) -> None:
    """All at once, with pages for a fifth of those who have a seat."""
    whole = whole_proof(name, dtype, executor, assets, tmp_path_factory.getbasetemp())
    proof = copy(whole)
    proof.jobs = [replace(job, arrival=0.0) for job in whole.jobs]
    seats = {"max_num_seqs": 64, "page_size": 4}
    counted = proof.holds(a_fifth(proof.jobs[:64], 4), **seats, **SHORT_OF_PAGES[load])
    assert counted["finished"] == {"length": WHOLE}
    # where prompts come in chunks of 16, whoever decodes ends before so many can be admitted
    assert counted["preemptions"] >= 10 or load == "chunks of 16"
