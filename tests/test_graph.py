"""The graph executor against the eager one, bit for bit, whatever steps come; all of it but the capture on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Plan
from allotrope.errors import EngineError, UsageError
from allotrope.ops import registry
from allotrope.runtime.captured import Unread
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.graph import GraphExecutor
from allotrope.runtime.padding import Padding, buckets
from allotrope.runtime.program import capturable_rows, row_unit
from allotrope.runtime.static import Layout
from allotrope.runtime.step import LAST_DRAWN, WANT_LAST, WANT_NONE, Adjustments, Pending, StepInput, StepOutput
from tests.engines import CPU, GPT, LLAMA, MemoryEngine, plan_of, random_weights
from tests.tiny import KINDS
from tests.verifying import PLAIN, Forge

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 4
DECODES = 11  # rows up to which the tests' plans can be recorded


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page tables of several widths, though contexts are short."""
    monkeypatch.setattr("allotrope.runtime.graph.CONTEXT", 8)
    monkeypatch.setattr("allotrope.runtime.graph.PATIENCE", 0)


def capturable(plan: Plan, most: int | None = DECODES) -> Plan:
    """The plan with attention planned on the device for up to so many rows; beyond, on the host as before."""

    def changed(tactics: Any) -> Any:
        return ((None, "torch_planned4"),) if most is None else ((most, "torch_planned4"), *tactics)

    return replace(
        plan, calls=tuple(replace(c, tactics=changed(c.tactics)) if c.op == "attention" else c for c in plan.calls)
    )


@dataclass
class Row:
    """A request as the tests' own scheduler sees it: which of its tokens are known, where it lives."""

    prompt: list[int]
    total: int  # tokens that are ever computed
    temperature: float
    top_k: int
    seed: int
    slot: int
    pages: list[int]
    done: int = 0


@dataclass
class Traffic:
    """Random steps: prompts in chunks beside rows that decode, rows that come and go, pages that are used again."""

    vocab: int
    longest: int
    slots: int = 5
    pages: int = 40
    seed: int = 0
    running: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.free = list(range(self.pages))
        self.free_slots = list(range(self.slots))

    def steps(self, count: int) -> Iterator[StepInput]:
        for _ in range(count):
            self.running = [row for row in self.running if not self._ended(row)]
            if self.free_slots and (not self.running or self.random.random() < 0.3):
                self._admit()
            self.random.shuffle(self.running)  # rows do not keep their places
            yield self._step([row for row in self.running if row.done == 0 or self.random.random() < 0.9])

    def _admit(self) -> None:
        total = int(self.random.integers(2, self.longest))
        needed = -(-total // PAGE)
        if needed > len(self.free):
            return
        self.random.shuffle(self.free)
        prompt = self.random.integers(0, self.vocab, int(self.random.integers(1, total))).tolist()
        greedy = self.random.random() < 0.6
        self.running.append(
            Row(
                prompt,
                total,
                0.0 if greedy else 1.3,
                int(self.random.choice([0, 7])),
                int(self.random.integers(99)),
                self.free_slots.pop(int(self.random.integers(len(self.free_slots)))),
                [self.free.pop() for _ in range(needed)],
            )
        )

    def _ended(self, row: Row) -> bool:
        if row.done < row.total:
            return False
        self.free += row.pages
        self.free_slots.append(row.slot)
        return True

    def _step(self, rows: list[Row]) -> StepInput:
        rows = rows or self.running[:1]
        tokens: list[int] = []
        counts, draws, first = [], [], [row.done for row in rows]
        for row in rows:
            if row.done < len(row.prompt):
                some = row.prompt[row.done : row.done + int(self.random.integers(1, 15))]
            else:
                some = [LAST_DRAWN]
            tokens += some
            counts.append(len(some))
            row.done += len(some)
            draws.append(row.done >= len(row.prompt))
        width = max(len(row.pages) for row in rows)
        return StepInput(
            slots=np.array([row.slot for row in rows], np.int32),
            starts=np.array([0, *np.cumsum(counts)], np.int32),
            first=np.array(first, np.int32),
            tokens=np.array(tokens, np.int32),
            pages=np.array([row.pages + [-1] * (width - len(row.pages)) for row in rows], np.int32),
            want=np.where(draws, np.uint8(WANT_LAST), np.uint8(WANT_NONE)),
            sample=np.array(draws, np.bool_),
            prompt_lens=np.array([len(row.prompt) for row in rows], np.int32),
            temperature=np.array([row.temperature for row in rows], np.float32),
            top_k=np.array([row.top_k for row in rows], np.int32),
            top_p=np.ones(len(rows), np.float32),
            min_p=np.zeros(len(rows), np.float32),
            seeds=np.array([row.seed for row in rows], np.int64),
            candidates=np.zeros(len(rows), np.int32),
            page_copies=np.zeros((0, 2), np.int32),
        )


def bits(output: StepOutput) -> tuple[Any, ...]:
    logprobs = np.where(np.isnan(output.logprobs), np.float32(1), output.logprobs).tobytes()
    return output.tokens.tolist(), logprobs, output.finite.tolist(), output.candidates, output.scored


def executor(kind: type[EagerExecutor], engine: Any, plan: Plan, **options: Any) -> Any:
    settings = {"pages": 40, "page_size": PAGE, "max_tokens": 64, "max_requests": 5, "threads": 1, "poison": True}
    return kind(engine, plan=plan, **{"device": CPU, **settings, **options})


def compare(engine: Any, plan: Plan, steps: list[StepInput], ahead: int = 1, **options: Any) -> GraphExecutor:
    """Both executors over the same steps; the graph's outputs are read `ahead` steps late."""
    eager = executor(EagerExecutor, engine, plan, **options)
    expected = [bits(eager.run(step)) for step in steps]
    graph: GraphExecutor = executor(GraphExecutor, engine, plan, **options)
    flight: list[Pending] = []
    found = []
    for step in steps:
        flight.append(graph.launch(step))
        if len(flight) > ahead:
            found.append(bits(flight.pop(0).wait()))
    found += [bits(pending.wait()) for pending in flight]
    assert found == expected
    return graph


def repeated(steps: list[StepInput]) -> int:
    return sum(len(step.tokens) == step.rows and bool(step.sample.all()) for step in steps)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_gives_the_same_bits(kind: str, forge: Forge) -> None:
    engine = open_engine(forge.built(kind, without=PLAIN), device=CPU)
    plan = capturable(engine.manifest.plan)
    limit = min(plan.max_len, 40)
    steps = list(Traffic(plan.vocab, limit, slots=11, pages=90, seed=len(kind)).steps(90))
    assert 10 < repeated(steps) < 90
    graph = compare(engine, plan, steps, pages=90, max_requests=11)
    assert len({(sizes.rows, sizes.pages) for sizes in graph._recorded}) > 2


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", [LLAMA, GPT], ids=["llama", "gpt"])
def test_it_may_be_read_late(recipe: Any, dtype: str, ahead: int) -> None:
    engine = MemoryEngine(plan_of(recipe, dtype), random_weights(recipe, dtype=dtype))
    steps = list(Traffic(300, 60, seed=ahead).steps(120))
    assert compare(engine, capturable(plan_of(recipe, dtype)), steps, ahead)._recorded


@pytest.mark.parametrize("kind", ["gpt2", "llama-dynamic", "qwen3"])
def test_steps_with_prompts_are_recorded_when_their_sizes_come_again(
    kind: str, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(forge.built(kind, without=PLAIN), device=CPU)
    plan = capturable(engine.manifest.plan, None)
    steps = list(Traffic(plan.vocab, min(plan.max_len, 40), slots=3, pages=30, seed=7).steps(60))
    assert 10 < repeated(steps) < 50
    mixed = sum(len(step.tokens) > step.rows for step in steps)
    found = []
    for patience in (0, 1, 99):
        monkeypatch.setattr("allotrope.runtime.graph.PATIENCE", patience)
        graph = compare(engine, plan, steps, pages=30, max_requests=4)
        found.append(sum(not sizes.decodes for sizes in graph._recorded))
    assert mixed > 10 and found[0] > found[1] > found[2] == 0


@pytest.mark.parametrize(("tokens", "bound"), [(1, None), (64, 1)])
def test_an_executor_without_room_for_prompts_records_decoding_alone(tokens: int, bound: int | None) -> None:
    """One token a step, or tactics of which a graph holds a single row."""
    engine, plan = MemoryEngine(plan_of(LLAMA), random_weights(LLAMA)), capturable(plan_of(LLAMA), bound)
    graph = compare(engine, plan, list(Traffic(300, 30, slots=1, seed=6).steps(30)), max_tokens=tokens)
    assert not graph._padding.tokens and all(sizes.decodes for sizes in graph._recorded)


def llama() -> tuple[MemoryEngine, Plan]:
    return MemoryEngine(plan_of(LLAMA), random_weights(LLAMA)), capturable(plan_of(LLAMA))


def decoding(steps: list[StepInput]) -> Iterator[tuple[int, StepInput]]:
    return ((i, step) for i, step in enumerate(steps) if len(step.tokens) == step.rows and step.sample.all())


def test_adjusted_and_reported_rows_take_the_graph_up_to_the_logits() -> None:
    steps = list(Traffic(300, 50, seed=3).steps(80))
    for i, step in decoding(steps):
        ones = np.ones(step.rows, np.int32)
        rows = np.arange(step.rows, dtype=np.int32)
        if i % 3 == 0:
            changed = Adjustments(rows, 7 * rows + i, ones + np.float32(0.5), np.full(step.rows, 3.0, np.float32))
            steps[i] = replace(step, adjust=changed)
        if i % 4 == 0:
            steps[i] = replace(steps[i], candidates=ones * (i % 3 + 1))
        if i % 5 == 0:
            steps[i] = replace(steps[i], targets=rows + i, target_candidates=ones)
        if i % 7 == 0 and step.rows > 1:  # a beam: reported, not drawn
            steps[i] = replace(steps[i], sample=rows > 0, candidates=ones * 2)
    graph = compare(*llama(), steps)
    assert {sizes.draws for sizes in graph._recorded} == {True, False}


def test_pages_are_copied_before_a_recorded_step() -> None:
    steps = list(Traffic(300, 50, pages=30, seed=5).steps(60))
    for i, step in decoding(steps):
        row = i % step.rows
        page = int(step.pages[row, step.first[row] // PAGE])
        moved = step.pages.copy()
        moved[row, step.first[row] // PAGE] = 30 + i % 10
        steps[i] = replace(step, pages=moved, page_copies=np.array([[page, 30 + i % 10]], np.int32))
        break
    assert compare(*llama(), steps[: i + 1])._recorded


def test_other_rows_and_a_wider_table_change_no_bit() -> None:
    """One row alone, padded to eight, beside others, with a table far wider than its context."""
    engine, plan = llama()
    step = next(step for _, step in decoding(list(Traffic(300, 40, slots=1, seed=2).steps(40))) if step.first[0] > 6)
    history = list(Traffic(300, 40, slots=1, seed=2).steps(40))
    until = next(i for i, s in enumerate(history) if np.array_equal(s.first, step.first) and s.rows == 1)
    found = set()
    for wide in (1, 9):
        for unit in (1, 8):
            graph = executor(GraphExecutor, engine, plan, max_requests=8)
            graph._padding = replace(graph._padding, rows=buckets(8, unit), widths=(wide if wide > 1 else 2, 16))
            for each in history[: until + 1]:
                output = graph.launch(each).wait()
            found.add(repr(bits(output)))
    assert len(found) == 1


def test_logits_that_are_not_finite_end_their_row_and_touch_no_other() -> None:
    weights = random_weights(LLAMA)
    bad = weights | {"embed.weight": weights["embed.weight"].clone()}
    bad["embed.weight"][299] = torch.nan
    steps = list(Traffic(299, 40, seed=4).steps(60))
    last = max(i for i, step in decoding(steps) if step.rows > 2)
    spoilt = steps[last].tokens.copy()
    spoilt[1] = 299
    steps = [*steps[:last], replace(steps[last], tokens=spoilt)]
    engine = MemoryEngine(plan_of(LLAMA), bad)
    graph = compare(engine, capturable(plan_of(LLAMA)), steps)
    output = graph.launch(steps[-1]).wait()
    assert output.finite.tolist() == [row != 1 for row in range(steps[-1].rows)]
    assert output.tokens[1] == 0 and np.isnan(output.logprobs[1])


def test_rows_of_padding_touch_nobodys_pages_and_no_slot() -> None:
    engine, plan = llama()
    graph = executor(GraphExecutor, engine, plan, max_requests=8)
    step = next(Traffic(300, 40, seed=1).steps(1))
    graph.launch(step).wait()
    graph._padding = replace(graph._padding, rows=(8,))
    caches = {name: cache.clone() for name, cache in graph._caches.items()}
    one = replace(
        next(s for _, s in decoding(list(Traffic(300, 40, slots=1, seed=2).steps(20)))),
        slots=np.array([3], np.int32),
        first=np.array([0], np.int32),
        tokens=np.array([5], np.int32),
    )
    drawn = graph._drawn.clone()
    graph.launch(one).wait()
    page, offset = one.pages[0, one.first[0] // PAGE], one.first[0] % PAGE
    for name, before in caches.items():
        after = graph._caches[name]
        changed = (after.nan_to_num(7.0) != before.nan_to_num(7.0)).any(-1).nonzero().tolist()
        assert [place for place in changed if place[0] < graph.pages] == [[page, offset]]
    assert (graph._drawn != drawn).nonzero().flatten().tolist() in ([3], [3, 8], [8])


def test_graphs_are_recorded_when_first_met_and_kept() -> None:
    engine, plan = llama()
    graph = executor(GraphExecutor, engine, plan)
    assert len(graph._recorded) == 1  # the smallest is there from the start
    steps = [step for _, step in decoding(list(Traffic(300, 60, seed=9).steps(200)))]
    for step in steps:
        graph.launch(replace(step, tokens=np.full(step.rows, 4, np.int32))).wait()
    met = dict(graph._recorded)
    for step in steps:
        graph.launch(replace(step, tokens=np.full(step.rows, 4, np.int32))).wait()
    assert graph._recorded == met
    assert {sizes.rows for sizes in met} <= {1, 2, 3, 4, 5} and len({sizes.greedy for sizes in met}) == 2


def test_a_device_stands_still_while_the_host_prepares_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = executor(GraphExecutor, *llama())
    steps = [step for _, step in decoding(list(Traffic(300, 40, slots=1, seed=2).steps(20)))][:3]
    arrays = Padding.arrays

    def slowly(*args: Any) -> dict[str, Any]:
        time.sleep(0.3)
        return arrays(*args)

    graph.launch(steps[0]).wait()
    monkeypatch.setattr(Padding, "arrays", slowly)
    output = graph.launch(steps[1]).wait()
    assert output.idle_s > 0.29 and output.busy_s < 0.25


def test_what_cannot_be_recorded_is_said() -> None:
    engine, plan = llama()
    told = r"attn.attention: no graph can hold .* torch_splits4; run it with executor eager"
    with pytest.raises(EngineError, match=told):
        executor(GraphExecutor, engine, plan_of(LLAMA))
    assert capturable_rows(plan, 100) == DECODES and capturable_rows(plan_of(LLAMA), 100) == 0
    assert capturable_rows(capturable(plan_of(LLAMA), None), 100) == 100
    graph = executor(GraphExecutor, engine, plan)
    step = next(Traffic(300, 40, seed=1).steps(1))
    with pytest.raises(UsageError, match="slot 5 is used; this executor has 5"):
        graph.launch(replace(step, slots=step.slots * 0 + 5))
    with pytest.raises(EngineError, match="read starts on the host"):
        _ = Unread().starts


def test_rows_come_in_multiples_of_the_largest_tile() -> None:
    names = {name for call in plan_of(LLAMA).calls for _, name in call.tactics if call.op == "linear"}
    assert row_unit(plan_of(LLAMA)) == max(registry.tactic("linear", n).__dict__.get("rows", 1) for n in names) > 1


def test_an_array_of_another_shape_is_no_silent_surprise() -> None:
    layout = Layout.of({"tokens": np.zeros(3, np.int64), "top_k": np.zeros(3, np.int32)})
    assert layout.places["tokens"][0] == 0 and layout.size == 128
    block = np.zeros(layout.size, np.uint8)
    with pytest.raises(ValueError, match=r"top_k is int32 \(4,\)"):
        layout.fill(block, {"tokens": np.zeros(3, np.int64), "top_k": np.zeros(4, np.int32)})


def test_after_closing_it_says_so() -> None:
    graph = executor(GraphExecutor, *llama())
    step = next(Traffic(300, 40, seed=1).steps(1))
    graph.close()
    with pytest.raises(UsageError, match="closed"):
        graph.launch(step)
