"""`bench --load`: its arithmetic against figures worked out by hand, its loads and its limit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.artifact.plan import Plan
from allotrope.bench import lengths, trace
from allotrope.bench.drive import Clock, drive
from allotrope.bench.limit import limit
from allotrope.bench.load import measure, warm_up
from allotrope.bench.watch import Step, Watched
from allotrope.bench.workload import URGENT, Job, Workload, drawn, exactly, recorded, with_urgent
from allotrope.errors import RequestError, UsageError
from allotrope.hw.peaks import Ceilings
from allotrope.models.recipe import slots
from allotrope.runtime.generation import Generation
from allotrope.runtime.loop import Loop
from allotrope.runtime.request import Limits, Request
from allotrope.runtime.scheduler import Scheduler
from allotrope.runtime.step import WANT_ALL, WANT_LAST, WANT_NONE, StepInput
from allotrope.tokenizers import absent
from tests.engines import GPT, LLAMA, plan_of
from tests.load_kit import ROWS, Fake, write_trace
from tests.load_kit import exact_job as job

VOCAB = 300


class Hand:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.advance)

    def advance(self, seconds: float) -> None:
        self.time += seconds


def loop_of(executor: Any, *, slots: int = 2, policy: str = "fcfs", pages: int = 64) -> Loop:
    scheduler = Scheduler(pages, 4, slots, 64, 64, policy=policy)
    return Loop(executor, scheduler, absent(), Limits(VOCAB, 64))


# Driving


def test_a_load_by_hand() -> None:
    """Steps of a second each. A comes at 0 and B at 0.5, while the first step runs; C when nobody is there."""
    hand = Hand()
    watched = Watched(Fake(on_launch=lambda step: hand.advance(1.0), busy_s=0.75, idle_s=0.25))
    loop = loop_of(watched)
    jobs = [job(0.0, 3, 3), job(0.5, 2, 2), job(10.0, 1, 1)]
    driven = drive(loop, jobs, hand.clock)
    a, b, c = driven.times
    assert (a.started, a.tokens) == (0, [1, 2, 3])
    assert (b.started, b.tokens) == (1, [2, 3])
    assert (c.started, c.tokens) == (10, [11])
    assert {one.finish_reason for one in driven.times} == {"length"}
    assert (driven.seconds, driven.absent_s) == (11, 7)
    assert [step.counts.tolist() for step in watched.steps] == [[3], [1, 2], [1, 1], [1]]
    assert [step.ends.tolist() for step in watched.steps] == [[3], [4, 2], [5, 3], [1]]
    assert loop.metrics()["idle_share"] == pytest.approx(2 * 0.25 / (4 * 0.75 + 2 * 0.25))  # not before A nor before C


def test_what_waits_for_a_slot_queues() -> None:
    hand = Hand()
    loop = loop_of(Fake(on_launch=lambda step: hand.advance(1.0)), slots=1)
    driven = drive(loop, [job(0.0, 2, 2), job(0.0, 2, 1), job(0.0, 2, 1)], hand.clock)
    assert [one.started for one in driven.times] == [0, 2, 3]
    assert [one.tokens for one in driven.times] == [[1, 2], [3], [4]]


def test_a_step_does_not_look_at_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, steps = 0, 0
    request = Generation.request.fget

    def counting(generation: Generation) -> Request:
        nonlocal looked
        looked += 1
        return request(generation)

    def step(_: StepInput) -> None:
        nonlocal steps
        steps += 1

    monkeypatch.setattr(Generation, "request", property(counting))
    driven = drive(loop_of(Fake(on_launch=step), slots=2), [job(0.0, 2, 2) for _ in range(300)])
    assert steps >= 300 and looked < 20 * 300
    assert all(one.started <= one.tokens[0] for one in driven.times)


def test_a_pause_of_years_is_slept_in_parts() -> None:
    hand, slept = Hand(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        hand.advance(seconds)

    years = 3e8
    driven = drive(loop_of(Fake()), [job(years, 2, 1)], replace(hand.clock, sleep=sleep))
    assert max(slept) < 1e6 and driven.times[0].tokens[0] == pytest.approx(years)


def test_the_urgent_go_first() -> None:
    hand = Hand()
    loop = loop_of(Fake(on_launch=lambda step: hand.advance(1.0)), slots=1, policy="priority")
    jobs = [job(0.0, 2, 2), job(0.5, 2, 1), job(1.0, 2, 1, URGENT)]
    driven = drive(loop, jobs, hand.clock)
    assert [one.tokens for one in driven.times] == [[1, 2], [4], [3]]


def test_a_request_that_can_never_fit_fails_the_load_before_it_begins() -> None:
    launched = list[StepInput]()
    loop = loop_of(Fake(on_launch=launched.append), pages=2)
    with pytest.raises(RequestError, match="KV pages"):
        drive(loop, [job(0.0, 2, 2), job(0.0, 20, 20)])
    assert not launched and not loop.busy


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    def fail(step: StepInput) -> None:
        raise RuntimeError("planted")

    watched = Watched(Fake(on_launch=fail))
    loop = loop_of(watched)
    with pytest.raises(RuntimeError, match="planted"):
        drive(loop, [job(0.0, 3, 3), job(0.0, 3, 3), job(0.0, 3, 3)])
    assert not loop.busy
    watched.executor = Fake()
    assert len(drive(loop, [job(0.0, 3, 3)]).times[0].tokens) == 3


def test_figures_by_hand() -> None:
    hand = Hand()
    watched = Watched(Fake(on_launch=lambda step: hand.advance(0.5), busy_s=0.4, idle_s=0.1))
    workload = Workload((job(0.0, 3, 2), job(0.0, 5, 4)), {"seed": 0})
    ceilings = Ceilings(1e9, {"fp32": 1e30}, {}, 1, "today")
    whole = measure(loop_of(watched), watched, plan_of(LLAMA), workload, ceilings=ceilings, clock=hand.clock)
    found = whole.to_json()
    assert found["seconds"] == 2.0 and found["steps"] == 4 and found["peak_running"] == 2
    assert (found["prompt_tokens"], found["output_tokens"]) == (8, 6)
    assert found["output_tokens_per_s"] == 3 and found["total_tokens_per_s"] == 7 and found["requests_per_s"] == 1
    assert found["finished"] == {"length": 2}
    assert found["idle_share"] == pytest.approx(3 * 0.1 / (4 * 0.4 + 3 * 0.1))
    assert found["tpot_ms"]["mean"] == 500 and found["urgent"] is None
    seconds = found["limit"]["bytes"] / 1e9
    assert found["limit"]["seconds"] == pytest.approx(seconds)
    assert found["share_of_limit"] == pytest.approx(seconds / 2.0)
    assert found["limit"]["output_tokens_per_s"] == pytest.approx(6 / seconds)


def test_warming_up_leaves_no_prefix_behind() -> None:
    workload = Workload((job(3.0, 3, 9), job(4.0, 2, 2)), {})
    assert warm_up(workload, 1, 4) == [Job(0.0, (2, 3, 0), exactly(4))]
    watched = Watched(Fake())
    found = measure(loop_of(watched), watched, plan_of(LLAMA), drawn_load(8, prompts="20"), ceilings=None)
    assert found.counted["prefix_hit_tokens"] == 0 and found.counted["prefix_query_tokens"] > 0


# The limit


def weights_read(plan: Plan, recipe: Any, *, head: bool) -> int:
    """fp32 bytes of every weight that a step multiplies or adds with, counted from the recipe's slots."""
    sizes = {slot: 4 * math.prod(shape) for slot, shape in slots(recipe).items()}
    rows_only = {"embed.positions", *(() if recipe.tied else ("embed.weight",))}
    heads = {"head.norm.weight", "head.norm.bias", "head.weight", "embed.weight"}
    return sum(size for slot, size in sizes.items() if slot not in rows_only and (head or slot not in heads))


def step(*requests: tuple[int, int, int]) -> Step:
    """A step of requests, each with its first position, its tokens, and whose logits it wants."""
    first, counts, want = (np.array(column, np.int32) for column in zip(*requests, strict=True))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Step(starts, first, want.astype(np.uint8), want != WANT_NONE)


@pytest.mark.parametrize("recipe", [LLAMA, GPT], ids=["untied", "tied"])
def test_bytes_of_a_step(recipe: Any) -> None:
    plan = plan_of(recipe)
    attention = recipe.blocks[0].attention
    key = 4 * 2 * len(recipe.blocks) * attention.kv_heads * attention.head_dim  # key and value, all layers
    decode = step((9, 1, WANT_LAST), (4, 1, WANT_LAST))
    assert limit(plan, [decode], None).bytes == weights_read(plan, recipe, head=True) + (10 + 5) * key
    prefill = step((0, 7, WANT_NONE))  # no logits: the head is not read, unless the norms before it are
    got = limit(plan, [prefill], None).bytes - 7 * key
    assert weights_read(plan, recipe, head=False) <= got <= weights_read(plan, recipe, head=False) + 2 * 4 * 32
    assert limit(plan, [decode, prefill, decode], None).bytes == pytest.approx(
        2 * limit(plan, [decode], None).bytes + limit(plan, [prefill], None).bytes
    )


def test_flops_of_a_step() -> None:
    plan, (attention, mlp) = plan_of(LLAMA), (LLAMA.blocks[0].attention, LLAMA.blocks[0].mlp)
    q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    matrices = 2 * (32 * (2 * q + 2 * kv) + 3 * 32 * mlp.width)  # two layers
    seen = 2 * 4 * q * (10 + (1 + 2 + 3))  # a decode at position 9, a prompt of three tokens
    least = 2 * (4 * matrices + 2 * 32 * VOCAB) + seen
    found = limit(plan, [step((9, 1, WANT_LAST), (0, 3, WANT_LAST))], None).flops
    assert least <= found <= 1.1 * least  # norms, activations and sampling besides


def test_a_step_takes_the_longer_of_reading_and_computing() -> None:
    plan, steps = plan_of(LLAMA), [step((0, 32, WANT_ALL)), step((32, 1, WANT_LAST))]
    whole = limit(plan, steps, None)
    assert whole.seconds is None

    def seconds(read: float, flops: float) -> float:
        found = limit(plan, steps, Ceilings(read, {"fp32": flops}, {}, 1, "today")).seconds
        assert found is not None
        return found

    assert seconds(1e9, 1e30) == pytest.approx(whole.bytes / 1e9)
    assert seconds(1e30, 1e9) == pytest.approx(whole.flops / 1e9)
    each = [limit(plan, [one], None) for one in steps]
    balance = 1e9 * (each[0].flops / each[0].bytes + each[1].flops / each[1].bytes) / 2
    assert seconds(1e9, balance) == pytest.approx(each[0].flops / balance + each[1].bytes / 1e9)


def test_a_window_limits_what_is_read() -> None:
    from dataclasses import replace

    narrow = replace(LLAMA.blocks[0], attention=replace(LLAMA.blocks[0].attention, window=8))
    plan = plan_of(replace(LLAMA, blocks=(LLAMA.blocks[0], narrow)))
    far, near = (limit(plan, [step((first, 1, WANT_LAST))], None).bytes for first in (39, 7))
    key = 4 * 2 * 2 * 8  # key and value of one layer: two heads of eight
    assert far - near == (40 - 8) * key  # the wide layer alone


# Loads


@pytest.mark.parametrize(
    ("text", "low", "high"), [("128", 128, 128), ("3:5", 3, 5), ("1:1", 1, 1)], ids=["fixed", "even", "one"]
)
def test_lengths(text: str, low: int, high: int) -> None:
    found = lengths.parse("--prompt-lengths", text)
    random = np.random.default_rng(0)
    assert {found.draw(random, 9) for _ in range(200)} == set(range(low, high + 1))
    assert found.longest == high


def test_lognormal_lengths() -> None:
    found = lengths.parse("--prompt-lengths", "lognormal:200:0.7")
    random = np.random.default_rng(0)
    values = [found.draw(random, 2000) for _ in range(4000)]
    assert 185 < np.median(values) < 215
    assert 0.65 < np.std(np.log(values)) < 0.75
    assert max(found.draw(random, 250) for _ in range(100)) == 250


@pytest.mark.parametrize(
    "text", ["", "0", "5:3", "-3", "1.5", "lognormal:200", "lognormal:0.5:1", "lognormal:9:99", "x"]
)
def test_wrong_lengths(text: str) -> None:
    with pytest.raises(UsageError, match=r"--prompt-lengths is .*lognormal:MEDIAN:SIGMA"):
        lengths.parse("--prompt-lengths", text)


def drawn_load(count: int = 50, *, rate: float | None = None, seed: int = 0, prompts: str = "3:9") -> Workload:
    spec = lengths.parse("p", prompts), lengths.parse("o", "2:5")
    return drawn(count, *spec, rate=rate, max_len=64, vocab=VOCAB, seed=seed)


def test_a_drawn_load() -> None:
    load = drawn_load()
    assert len(load.jobs) == 50 and {one.arrival for one in load.jobs} == {0.0}
    assert {len(one.prompt) for one in load.jobs} == set(range(3, 10))
    assert {one.params.max_tokens for one in load.jobs} == set(range(2, 6))
    assert all(0 <= token < VOCAB for one in load.jobs for token in one.prompt)
    assert drawn_load() == load and drawn_load(seed=1) != load
    assert load.described == {"prompts": {"from": 3, "to": 9}, "outputs": {"from": 2, "to": 5}, "rate": None, "seed": 0}


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = [one.arrival for one in drawn_load(4000, rate=20.0).jobs]
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0 and (gaps >= 0).all()
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 20, rel=0.08)  # exponential: its deviation is its mean


def test_drawn_lengths_fit_the_engine() -> None:
    load = drawn_load(300, prompts="lognormal:40:1")
    assert max(len(one.prompt) for one in load.jobs) == 59  # the longest output's room is kept
    with pytest.raises(UsageError, match=r"up to 65 tokens together; the engine's limit is 64"):
        drawn_load(prompts="60")


def test_urgent_jobs() -> None:
    load = with_urgent(drawn_load(1000), 0.25, 0)
    share = sum(one.priority == URGENT for one in load.jobs) / 1000
    assert 0.2 < share < 0.3 and load.described["urgent"] == 0.25
    assert [one.prompt for one in load.jobs] == [one.prompt for one in drawn_load(1000).jobs]


def test_a_trace(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", *ROWS)
    assert trace.read(path) == (
        trace.Recorded(0, 374, 44),
        trace.Recorded(1.5, 91, 1),
        trace.Recorded(4, 396, 109),
    )
    assert len(trace.read(path, 2)) == 2
    load = recorded(path, None, speedup=2, scale=None, max_len=101, vocab=VOCAB, seed=0)  # 505 → 101: a fifth
    assert [(one.arrival, len(one.prompt), one.params.max_tokens) for one in load.jobs] == [
        (0, 75, 9),
        (0.75, 18, 1),
        (2, 79, 22),
    ]
    assert load.described["scale"] == 0.2
    load = recorded(path, None, speedup=math.inf, scale=None, max_len=10**4, vocab=VOCAB, seed=0)
    assert [(one.arrival, len(one.prompt), one.params.max_tokens) for one in load.jobs] == [
        (0, 374, 44),
        (0, 91, 1),
        (0, 396, 109),
    ]
    with pytest.raises(UsageError, match=r"has 252 tokens at --scale 0.5; the engine's limit is 101.*0.2"):
        recorded(path, None, speedup=1, scale=0.5, max_len=101, vocab=VOCAB, seed=0)


def test_a_trace_fits_whatever_rounding_does(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", *ROWS, "2023-11-16 18:15:48,1,503", "2023-11-16 18:15:48,503,1")
    for max_len in range(2, 120):
        load = recorded(path, None, speedup=1, scale=None, max_len=max_len, vocab=VOCAB, seed=0)
        assert all(one.prompt and len(one.prompt) + one.params.max_tokens <= max_len for one in load.jobs)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("TIMESTAMP,ContextTokens", "2023-11-16,1", "no column GeneratedTokens; its first line must name TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2", "line 2: TIMESTAMP is 'yesterday'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16,0,2", "line 2: ContextTokens is '0'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16,3", "line 2: GeneratedTokens is ''"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "", "holds no request"),
    ],
)
def test_a_wrong_trace(tmp_path: Path, header: str, row: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trace.read(write_trace(tmp_path / "t.csv", row, header=header))


def test_an_unreadable_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.csv: cannot read the trace: No such file"):
        trace.read(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the trace"):
        trace.read(tmp_path / "binary")


def test_the_published_trace(assets: Path) -> None:
    rows = trace.read(assets / "traces" / "azure_conv_2023.csv")
    assert len(rows) == 19366
    assert rows[0] == trace.Recorded(0, 374, 44)
    assert rows[1].at == pytest.approx(4.314579, abs=1e-5)
