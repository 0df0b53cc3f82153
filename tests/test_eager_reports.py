"""What executors on a CPU report of their logits, steps launched ahead, logits adjusted: by hand-made steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.plan import Plan
from allotrope.errors import EngineError, UsageError
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.native import NativeExecutor
from allotrope.runtime.step import (
    LAST_DRAWN,
    WANT_ALL,
    WANT_LAST,
    WANT_NONE,
    Adjustments,
    Floats,
    StepInput,
)
from tests.engines import CPU, LLAMA, VOCAB, MemoryEngine, naive, plan_of, random_weights
from tests.native_kit import natively, needs_core

PAGE = 4
PROMPT = [7, 250, 31, 31, 90, 4, 211, 18, 5, 66]


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared."""


@dataclass(frozen=True)
class Row:
    slot: int
    tokens: Sequence[int]
    first: int = 0
    want: int = WANT_LAST
    sample: bool = True
    temperature: float = 0.0
    seed: int = 0
    candidates: int = 0
    targets: Sequence[int] = ()
    target_candidates: int = 0


def step_of(rows: Sequence[Row], **more: Any) -> StepInput:
    """Row by slot: slot s lives on pages 10 s, 10 s + 1, …"""
    targets = [token for row in rows for token in (row.targets or [-1] * len(row.tokens))]

    def each(name: str, dtype: Any) -> Any:
        return np.array([getattr(row, name) for row in rows], dtype)

    given: dict[str, Any] = {
        "slots": each("slot", np.int32),
        "starts": np.cumsum([0, *(len(row.tokens) for row in rows)]).astype(np.int32),
        "first": each("first", np.int32),
        "tokens": np.array([token for row in rows for token in row.tokens], np.int32),
        "pages": np.array([np.arange(10) + 10 * row.slot for row in rows], np.int32),
        "want": each("want", np.uint8),
        "sample": each("sample", np.bool_),
        "prompt_lens": np.full(len(rows), len(PROMPT), np.int32),
        "temperature": each("temperature", np.float32),
        "top_k": np.zeros(len(rows), np.int32),
        "top_p": np.ones(len(rows), np.float32),
        "min_p": np.zeros(len(rows), np.float32),
        "seeds": each("seed", np.int64),
        "candidates": each("candidates", np.int32),
        "page_copies": np.zeros((0, 2), np.int32),
        "targets": np.array(targets if max(targets) >= 0 else [], np.int32),
        "target_candidates": each("target_candidates", np.int32),
    }
    return StepInput(**(given | more))


Runner = EagerExecutor | NativeExecutor


def made(kind: str, plan: Plan, weights: Mapping[str, torch.Tensor], **options: Any) -> Runner:
    shape: dict[str, Any] = {"device": CPU, "pages": 200, "page_size": PAGE, "max_tokens": 32, "threads": 1} | options
    if kind == "eager":
        return EagerExecutor(MemoryEngine(plan, weights), **shape)
    return NativeExecutor(MemoryEngine(natively(plan), weights), **shape)


@pytest.fixture(params=["eager", pytest.param("native", marks=needs_core)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runner(kind: str) -> Runner:
    return made(kind, plan_of(LLAMA), random_weights(LLAMA), max_requests=2, poison=True)


def truth(tokens: Sequence[int]) -> torch.Tensor:
    return naive(LLAMA, random_weights(LLAMA), list(tokens)).double().log_softmax(-1)


def test_a_step_feeds_on_tokens_that_only_the_device_knows(runner: Runner) -> None:
    """Six steps are launched before any is read, and the rows change places; the same tokens as step by step."""
    prompts = {3: PROMPT, 0: PROMPT[::-1], 17: PROMPT[2:7]}  # slots; 17 is more than was said at load
    waiting = [(list(prompts), runner.launch(step_of([Row(slot, tokens) for slot, tokens in prompts.items()])))]
    for i in range(5):
        order = sorted(prompts, key=lambda slot: (slot * (i + 1)) % 5)
        rows = [Row(slot, [LAST_DRAWN], first=len(prompts[slot]) + i) for slot in order]
        waiting.append((order, runner.launch(step_of(rows))))
    drawn: dict[int, list[int]] = {slot: [] for slot in prompts}
    for order, pending in waiting:
        assert pending.ready
        for slot, token in zip(order, pending.wait().tokens.tolist(), strict=True):
            drawn[slot].append(token)
    for slot, tokens in prompts.items():
        assert drawn[slot] == truth([*tokens, *drawn[slot][:-1]])[len(tokens) - 1 :].argmax(-1).tolist()
    assert len({tuple(tokens) for tokens in drawn.values()}) == 3


def test_a_row_that_draws_nothing_keeps_its_slots_token(runner: Runner) -> None:
    first = int(runner.run(step_of([Row(1, PROMPT)])).tokens[0])
    runner.run(step_of([Row(1, PROMPT[:3], want=WANT_NONE, sample=False), Row(0, PROMPT[:4])]))
    runner.run(step_of([Row(1, PROMPT)], sample=np.array([False])))
    out = runner.run(step_of([Row(0, [5, 6]), Row(1, [LAST_DRAWN], first=len(PROMPT))]))
    assert out.tokens[1] == truth([*PROMPT, first])[-1].argmax()


def test_known_and_unknown_tokens_share_a_step(runner: Runner) -> None:
    drawn = int(runner.run(step_of([Row(0, PROMPT)])).tokens[0])
    out = runner.run(step_of([Row(1, PROMPT[:5]), Row(0, [LAST_DRAWN], first=len(PROMPT))]))
    assert out.tokens.tolist() == [truth(PROMPT[:5])[-1].argmax(), truth([*PROMPT, drawn])[-1].argmax()]


def bits(value: Any) -> Any:
    """Floats inside tuples as their exact text: NaN equals itself, and nothing else is forgiven."""
    return tuple(map(bits, value)) if isinstance(value, tuple) else repr(value)


def scored(out: Any, row: int) -> Any:
    return bits(out.scored[row])


def test_a_prompt_is_scored(runner: Runner) -> None:
    targets = [*PROMPT[1:], -1]
    whole = runner.run(step_of([Row(0, PROMPT, targets=targets, target_candidates=4)]))
    expected = truth(PROMPT)
    assert len(whole.scored[0]) == len(PROMPT) - 1
    for at, (value, candidates) in enumerate(whole.scored[0]):
        assert value == pytest.approx(float(expected[at, PROMPT[at + 1]]), abs=2e-5)
        assert [token for token, _ in candidates] == expected[at].topk(4).indices.tolist()
        assert [value for _, value in candidates] == pytest.approx(expected[at].topk(4).values.tolist(), abs=2e-5)
    assert whole.tokens[0] == expected[-1].argmax()
    # in chunks, among others, wanting logits or not: the same bits
    others = [Row(5, PROMPT[3:], candidates=2), Row(6, [9, 8], want=WANT_NONE, sample=False)]
    found: list[Any] = []
    for first, end in ((0, 3), (3, 4), (4, 10)):
        last = end == len(PROMPT)
        mine = Row(
            1, PROMPT[first:end], first, WANT_LAST if last else WANT_NONE, last,
            targets=targets[first:end], target_candidates=4,
        )  # fmt: skip
        out = runner.run(step_of([others[0], mine, others[1]] if first else [mine, *others]))
        row = 1 if first else 0
        assert out.scored[1 - row] == out.scored[2] == ()
        found += out.scored[row]
        assert [len(one) for one in out.candidates] == ([2, 0, 0] if first else [0, 2, 0])
    assert bits(tuple(found)) == bits(whole.scored[0])
    assert bits(out.candidates[0]) == bits(runner.run(step_of([Row(5, PROMPT[3:], candidates=9)])).candidates[0][:2])


def test_scores_without_candidates_and_of_some_positions(runner: Runner) -> None:
    targets = [-1, 99, -1, 0, *[-1] * 6]
    rows = [Row(0, PROMPT, want=WANT_NONE, sample=False, targets=targets), Row(1, PROMPT, want=WANT_ALL)]
    out = runner.run(step_of(rows))
    expected = truth(PROMPT)
    assert out.scored[1] == ()
    assert [value for value, _ in out.scored[0]] == pytest.approx(
        [float(expected[1, 99]), float(expected[3, 0])], abs=2e-5
    )
    assert all(candidates == () for _, candidates in out.scored[0])
    assert len(out.logits) == 2 + len(PROMPT)
    assert out.tokens.tolist() == [-1, int(expected[-1].argmax())]


def test_the_likeliest_of_rows_that_draw_nothing(runner: Runner) -> None:
    """Beams: no token is drawn, so many candidates come; as many more do not change the first ones."""
    rows = [
        Row(0, PROMPT, sample=False, candidates=33),
        Row(1, PROMPT[:4], candidates=2),
        Row(2, PROMPT[:7], want=WANT_NONE, sample=False, candidates=5),  # still in its prompt
        Row(3, PROMPT, sample=False, candidates=500),  # more than there are words
    ]
    out = runner.run(step_of(rows))
    assert [len(one) for one in out.candidates] == [33, 2, 0, VOCAB]
    assert out.tokens[[0, 2, 3]].tolist() == [-1] * 3 and np.isnan(out.logprobs[[0, 2, 3]]).all()
    assert bits(out.candidates[3][:33]) == bits(out.candidates[0])
    assert [token for token, _ in out.candidates[0]] == truth(PROMPT)[-1].topk(33).indices.tolist()
    token, value = out.candidates[1][0]
    assert (token, np.float32(value)) == (out.tokens[1], out.logprobs[1])


def adjust(*entries: tuple[int, int, float, float]) -> Adjustments:
    rows, tokens, divide, add = zip(*entries, strict=True)
    floats: list[Floats] = [np.array(values, np.float32) for values in (divide, add)]
    return Adjustments(np.array(rows, np.int32), np.array(tokens, np.int32), *floats)


def test_adjustments_reach_their_rows(runner: Runner) -> None:
    rows = [
        Row(0, PROMPT, want=WANT_NONE, sample=False),
        Row(1, PROMPT),
        Row(2, PROMPT, sample=False),
        Row(3, PROMPT[::-1]),
    ]
    best, other = (truth(tokens)[-1].topk(2).indices.tolist() for tokens in (PROMPT, PROMPT[::-1]))
    plain = runner.run(step_of(rows))
    assert plain.tokens.tolist() == [-1, best[0], -1, other[0]]
    ban = adjust((3, other[0], 1.0, -np.inf), (1, best[1], 1.0, 50.0))
    out = runner.run(step_of(rows, adjust=ban))
    assert out.tokens.tolist() == [-1, best[1], -1, other[1]]
    expected = [truth(PROMPT)[-1, best[1]], truth(PROMPT[::-1])[-1, other[1]]]
    assert out.logprobs[[1, 3]].tolist() == pytest.approx([float(value) for value in expected], abs=2e-5)
    assert runner.run(step_of(rows, adjust=adjust((2, 5, 1.0, -1.0)))).tokens.tolist() == plain.tokens.tolist()


def test_a_row_with_nothing_left_to_draw_is_told_apart(runner: Runner) -> None:
    everything = adjust(*((0, token, 1.0, -np.inf) for token in range(VOCAB)))
    out = runner.run(step_of([Row(0, PROMPT), Row(1, PROMPT)], adjust=everything))
    assert out.finite.tolist() == [False, True]
    assert out.tokens[1] == truth(PROMPT)[-1].argmax()


def test_a_row_of_nan_has_no_reports_and_harms_none(kind: str) -> None:
    weights = random_weights(LLAMA)
    weights["embed.weight"][31] = torch.nan
    runner = made(kind, plan_of(LLAMA), weights, max_tokens=9)
    clean = [9, 8, 5]
    rows = [Row(0, PROMPT, candidates=3, targets=[*PROMPT[1:], -1]), Row(1, clean, candidates=3, targets=[8, 5, -1])]
    out, alone = runner.run(step_of(rows)), runner.run(step_of(rows[1:]))
    assert out.finite.tolist() == [False, True]
    assert out.candidates[0] == () and bits(out.candidates[1]) == bits(alone.candidates[0])
    assert scored(out, 1) == scored(alone, 0)


def test_the_times_of_a_step(runner: Runner) -> None:
    first, second = runner.run(step_of([Row(0, PROMPT)])), runner.run(step_of([Row(0, PROMPT)]))
    assert first.busy_s > 0 and first.idle_s == 0
    assert second.busy_s > 0 and second.idle_s > 0


def test_what_a_plan_cannot_do_is_said_at_load(kind: str) -> None:
    plan = plan_of(LLAMA)

    def bare(plan: Plan) -> Plan:
        *before, last = plan.calls
        ins = {name: slot for name, slot in last.ins.items() if not name.startswith("adjust")}
        return replace(plan, calls=(*before, replace(last, ins=ins)))

    with pytest.raises(EngineError, match=r"head.sample: the plan draws tokens without adjustments; rebuild"):
        made(kind, bare(plan), random_weights(LLAMA))


def test_a_closed_executor_says_so(runner: Runner) -> None:
    runner.close()
    with pytest.raises(UsageError, match="has been closed"):
        runner.launch(step_of([Row(0, PROMPT)]))
