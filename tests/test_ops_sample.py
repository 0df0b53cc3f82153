"""Philox against its published vectors; sampling against plain Python, its own statistics, and itself in company."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.hw.device import Device
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.philox import UNIFORM_BITS, philox4x32, uniform_bits
from allotrope.ops.sample.uniforms import uniforms

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "test", "x86_64", 2, 1 << 34)
TACTIC = registry.tactic("sample", "torch_sample")
ONES = 0xFFFFFFFF


# the known answers that the Random123 library is published with
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...], library: str
) -> None:
    make = (lambda word: np.array([word], np.int64)) if library == "numpy" else (lambda word: torch.tensor([word]))
    words = philox4x32(tuple(map(make, counter)), tuple(map(make, key)))
    assert tuple(int(word[0]) for word in words) == expected


def test_philox_is_the_same_in_numpy_and_torch() -> None:
    random = np.random.default_rng(0)
    seeds = random.integers(-(2**63), 2**63 - 1, 5000, dtype=np.int64)
    positions = random.integers(0, 2**40, 5000, dtype=np.int64)
    ours = uniform_bits(seeds, positions)
    assert np.array_equal(ours, uniform_bits(torch.from_numpy(seeds), torch.from_numpy(positions)).numpy())
    assert ours.min() >= 0
    assert ours.max() < 2**UNIFORM_BITS
    assert len(np.unique(ours)) == 5000
    assert abs((ours / 2**UNIFORM_BITS).mean() - 0.5) < 0.02


def test_philox_in_fewer_steps_is_the_same() -> None:
    random = np.random.default_rng(9)
    seeds = torch.from_numpy(random.integers(-(2**63), 2**63 - 1, 5000, dtype=np.int64))
    positions = torch.from_numpy(random.integers(0, 2**40, 5000, dtype=np.int64))
    expected = uniform_bits(seeds, positions).double() / 2**UNIFORM_BITS
    assert torch.equal(uniforms(seeds, positions)[:, 0], expected)
    assert uniforms(seeds[:0], positions[:0]).shape == (0, 1)


def draw(
    logits: torch.Tensor,
    how: dict[str, Any],
    rows: torch.Tensor | None = None,
    changes: dict[str, torch.Tensor] | None = None,
) -> tuple[list[int], torch.Tensor]:
    """Tokens and log-probabilities; `how` gives each parameter, for one row or for all; `changes` adjustments."""
    rows = torch.arange(len(logits)) if rows is None else rows
    ins: dict[str, torch.Tensor] = {"logits": logits, "rows": rows, **(changes or {})}
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 0, "sample_positions": 0}
    for name, default in defaults.items():
        dtype = {"top_k": torch.int32, "seeds": torch.int64, "sample_positions": torch.int64}.get(name, torch.float32)
        ins[name] = torch.as_tensor(how.get(name, default)).to(dtype).expand(len(rows)).contiguous()
    out = {"tokens": torch.full((len(rows), 1), -9), "logprobs": torch.full((len(rows), 1), 9.0)}
    given = Problem("sample", {"rows": len(rows), "logits": len(logits), "vocab": logits.shape[1]}, {}, "fp32")
    TACTIC.run(out, ins, {}, torch.empty(TACTIC.workspace(given, CPU), dtype=torch.uint8))
    return out["tokens"][:, 0].tolist(), out["logprobs"][:, 0]


def distribution(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """What is left of a row and how likely, in plain Python: the filters in their order, each renormalising."""
    powers = [math.exp((x - max(logits)) / temperature) for x in logits]
    left = sorted(range(len(logits)), key=lambda token: (-powers[token], token))
    left = left[:top_k] if top_k else left
    mass, kept = math.fsum(powers[token] for token in left), []
    before = 0.0
    for token in left:
        if kept and before >= top_p * mass:
            break
        kept.append(token)
        before += powers[token]
    kept = [token for token in kept if powers[token] >= min_p * powers[kept[0]]]
    mass = math.fsum(powers[token] for token in kept)
    return {token: powers[token] / mass for token in sorted(kept)}


FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 5, "temperature": 2.0},
    {"top_p": 0.7},
    {"top_p": 0.001},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.8},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.15, "temperature": 1.5},
    {"top_k": 1000, "top_p": 0.5, "temperature": 0.3},
]


@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_it_draws_as_plain_python_does(how: dict[str, Any]) -> None:
    """The same uniform through the inverse of the same distribution, in the vocabulary's order."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (300, 60)).astype(np.float32)
    logits[::5] = np.round(logits[::5])  # ties everywhere
    seeds, positions = random.integers(-(2**62), 2**62, 300), random.integers(0, 5000, 300)
    tokens, _ = draw(torch.from_numpy(logits), {**how, "seeds": seeds, "sample_positions": positions})
    uniforms = uniform_bits(seeds, positions) / 2**UNIFORM_BITS
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **how}
    full = {name: float(np.float32(value)) if name != "top_k" else value for name, value in full.items()}
    for row, uniform, token in zip(logits.tolist(), uniforms, tokens, strict=True):
        left, end, expected = distribution(row, **full), 0.0, -1
        for candidate, share in left.items():
            end += share
            if uniform < end:
                expected = candidate
                break
        assert token == expected


@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_twenty_thousand_draws_have_the_right_frequencies(how: dict[str, Any]) -> None:
    count = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5)) * 1.5
    tokens, _ = draw(logits, {**how, "seeds": 99, "sample_positions": torch.arange(count)}, torch.zeros(count).long())
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **how}
    expected, seen = distribution(logits[0].tolist(), **full), Counter(tokens)
    assert set(seen) <= set(expected)
    chi = sum((seen[token] - share * count) ** 2 / (share * count) for token, share in expected.items())
    freedom = len(expected) - 1
    # beyond this lies less than one healthy run in 10,000 (Wilson and Hilferty's approximation)
    assert chi <= freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3 if freedom else chi == 0


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.zeros(4, 1000)
    logits[1, [17, 400, 999]] = 3.0
    logits[2, 999] = 1e-30
    logits[3] = -torch.inf
    logits[3, 5] = -1e30
    for seed in range(3):
        assert draw(logits, {"temperature": 0.0, "seeds": seed, "top_k": 3, "top_p": 0.5})[0] == [0, 17, 999, 5]


def test_the_log_probability_is_the_raw_logits() -> None:
    logits = torch.randn(40, 5003, generator=torch.Generator().manual_seed(2)) * 4
    logits[0, 7] = 60.0  # a certain one: its log-probability is nearly, not exactly, 0
    tokens, logprobs = draw(logits, {"temperature": 0.3, "top_k": 20, "top_p": 0.9, "seeds": torch.arange(40)})
    truth = logits.double().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logprobs.double() - truth).abs().max() < 5e-7
    assert (logprobs <= 0).all()


def test_seed_and_position_decide_and_nothing_else() -> None:
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(32, 2000, generator=random)
    how = {
        "temperature": torch.tensor([0.0, 0.8, 1.0, 1.3]).repeat(8),
        "top_k": torch.tensor([0, 40, 0, 7, 3]).repeat(7)[:32],
        "top_p": torch.tensor([1.0, 0.9, 0.6]).repeat(11)[:32],
        "min_p": torch.tensor([0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.1]).repeat(5)[:32],
        "seeds": torch.arange(32) * 7919,
        "sample_positions": torch.arange(32) * 3,
    }
    tokens, logprobs = draw(logits, how)
    for size in (1, 2, 9, 31):
        rows = torch.randperm(32, generator=random)[:size]
        some, values = draw(logits, {name: value[rows] for name, value in how.items()}, rows)
        assert some == [tokens[row] for row in rows]
        assert torch.equal(values, logprobs[rows])
    other, _ = draw(logits, {**how, "seeds": how["seeds"] + 1})
    later, _ = draw(logits, {**how, "sample_positions": how["sample_positions"] + 1})
    for changed in (other, later):
        assert changed[::4] == tokens[::4]  # greedy rows
        assert changed != tokens


def test_rows_without_a_maximum_harm_nobody() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    alone = draw(logits[[0, 5]], {"top_p": 0.9})
    logits[1, 3] = torch.nan
    logits[2] = torch.nan
    logits[3, 0] = torch.inf
    logits[4] = -torch.inf
    for how in ({"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {}, {"temperature": 0.0}):
        tokens, logprobs = draw(logits, how)
        assert tokens[1:5] == [0, 0, 0, 0]
        assert logprobs[1:5].isnan().all()
    tokens, logprobs = draw(logits, {"top_p": 0.9})
    assert [tokens[0], tokens[5]] == alone[0]
    assert torch.equal(logprobs[[0, 5]], alone[1])


def test_the_cpu_shortcuts_keep_what_the_full_sort_keeps() -> None:
    """On other devices every row is sorted whole; the same function runs here on the CPU."""
    from allotrope.ops.sample import filters, sums

    random = torch.Generator().manual_seed(6)
    vocab = 9000
    for spread in (0.01, 1.0, 4.0):  # a flat distribution needs more than the first thousand tokens
        logits = torch.randn(12, vocab, generator=random) * spread
        logits[::2] = (logits[::2] * 4).round() / 4
        logits[3, ::2] = -0.0  # equal to 0, and ranked with it by index
        logits[5, 100:] = -torch.inf
        weights = sums.weigh((logits - logits.amax(-1, keepdim=True)).double())
        how = {
            "top_k": torch.tensor([0, 0, 0, 5, 2000, 9000, 9999, 0, 1, 0, 3000, 0]),
            "top_p": torch.tensor([1.0, 0.5, 0.999, 1.0, 0.3, 0.9, 0.1, 1.0, 1.0, 0.0, 0.9, 0.95]),
            "min_p": torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0, 0.5]),
        }
        whole, each = weights.clone(), weights.clone()
        filters.filter_all(logits, whole, torch.full((12, sums.padded(vocab)), torch.nan, dtype=torch.float64), how)
        filters.filter_each(logits, each, how)
        assert torch.equal(each, whole)
        assert (whole.sum(-1) > 0).all()
        assert ((whole > 0).sum(-1) < (weights > 0).sum(-1)).sum() >= 7


def test_sums_are_found_block_by_block() -> None:
    from allotrope.ops.sample.sums import BLOCK, Sums

    random = torch.Generator().manual_seed(8)
    weights = torch.randint(0, 5, (40, 4 * BLOCK), generator=random).double()
    weights[::3, 300:1700] = 0
    weights[7] = 0
    ends, sums = weights.cumsum(-1), Sums(weights)
    assert torch.equal(sums.total, ends[:, -1:])
    for _ in range(50):
        index = torch.randint(4 * BLOCK, (40, 1), generator=random)
        assert torch.equal(sums.to(index), ends.gather(1, index))
        target = (torch.rand(40, 1, generator=random, dtype=torch.float64) * sums.total).floor()
        assert torch.equal(sums.first(target, above=False), torch.searchsorted(ends, target))
        above = torch.searchsorted(ends, target, right=True)
        assert torch.equal(sums.first(target, above=True)[above < 4 * BLOCK], above[above < 4 * BLOCK])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_it_passes_the_numerics_policy_row_by_row(dtype: str) -> None:
    for axes in ({"rows": 64, "logits": 40, "vocab": 1003}, {"rows": 1, "logits": 1, "vocab": 1}):
        given = Problem("sample", axes, {}, dtype)
        assert check.check(TACTIC, given, CPU, seed=1).reason is None
    assert check.check_rows(TACTIC, Problem("sample", {"rows": 1, "logits": 5, "vocab": 77}, {}, dtype), CPU) is None


def test_a_wrong_filter_is_refused() -> None:
    def without_top_p(out: Any, ins: Any, params: Any, workspace: Any) -> None:
        TACTIC.run(out, {**ins, "top_p": torch.ones_like(ins["top_p"])}, params, workspace)

    planted = dataclasses.replace(TACTIC, run=without_top_p)  # type: ignore[type-var]
    result = check.check(planted, Problem("sample", {"rows": 64, "logits": 3, "vocab": 1003}, {}, "fp32"), CPU)
    assert "bit for bit" in str(result.reason)


ADJUSTED = frozenset(("adjust_rows", "adjust_tokens", "adjust_divide", "adjust_add"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("adjustments", [0, 1, 300])
def test_adjusted_logits_pass_the_numerics_policy_row_by_row(dtype: str, adjustments: int) -> None:
    axes = {"rows": 64, "logits": 40, "vocab": 1003, "adjustments": adjustments}
    assert check.check(TACTIC, Problem("sample", axes, {}, dtype, ADJUSTED), CPU, seed=2).reason is None
    few = {"rows": 1, "logits": 5, "vocab": 77, "adjustments": adjustments}
    assert check.check_rows(TACTIC, Problem("sample", few, {}, dtype, ADJUSTED), CPU) is None


def adjusted(entries: list[tuple[int, int, float, float]]) -> dict[str, torch.Tensor]:
    rows, tokens, divide, add = zip(*entries, strict=True)
    longs = {"adjust_rows": torch.tensor(rows), "adjust_tokens": torch.tensor(tokens)}
    return longs | {"adjust_divide": torch.tensor(divide), "adjust_add": torch.tensor(add)}


def test_what_an_adjustment_does() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.0], [1.0, 3.0, -2.0, 0.0]])
    greedy = {"temperature": 0.0}
    for entries, expected in (
        ([(0, 1, 1.0, -2.5)], [0, 1]),
        ([(0, 1, 4.0, 0.0)], [0, 1]),  # 3 / 4
        ([(0, 1, 0.5, 0.0), (1, 1, 1.0, -torch.inf)], [1, 0]),
        ([(1, 2, 0.25, 3.75)], [1, 2]),  # −2 · 0.25 + 3.75 = 3.25
        ([(1, 2, 4.0, 8.0)], [1, 1]),  # −2 · 4 + 8 = 0
        ([(0, 3, 9.0, 3.0)], [1, 1]),  # a tie goes to the lower index
        ([(-1, 1, 1.0, -torch.inf)], [1, 1]),  # nothing
    ):
        tokens, logprobs = draw(logits, greedy, changes=adjusted(entries))
        assert tokens == expected, entries
        raw = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(logprobs, raw, atol=1e-6)  # whatever was adjusted
    tokens, logprobs = draw(logits, greedy, changes=adjusted([(0, token, 1.0, -torch.inf) for token in range(4)]))
    assert tokens == [0, 1] and logprobs.isnan().tolist() == [True, False]  # nothing is left


def test_what_is_promised_changes_no_bit() -> None:
    problem = Problem("sample", {"rows": 64, "logits": 9, "vocab": 3000, "adjustments": 100}, {}, "fp32", ADJUSTED)
    ins = check.rounded(registry.contract("sample"), problem, registry.contract("sample").make_inputs(problem, 3))

    def bits(params: dict[str, Any], **changed: float) -> tuple[list[int], list[int]]:
        given = ins | {name: torch.full_like(ins[name], value) for name, value in changed.items()}
        tokens, logprobs = torch.zeros(64, 1, dtype=torch.int64), torch.zeros(64, 1)
        space = torch.empty(TACTIC.workspace(problem, CPU), dtype=torch.uint8)
        TACTIC.run({"tokens": tokens, "logprobs": logprobs}, given, params, space)
        return tokens[:, 0].tolist(), logprobs[:, 0].view(torch.int32).tolist()

    cold: dict[str, float] = {"temperature": 0.0}
    assert bits({"greedy": True}, **cold) == bits({}, **cold)
    free: dict[str, float] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert bits({"filtered": False}, **free) == bits({}, **free)
    assert bits({"greedy": True}) != bits({}) != bits({"filtered": False})  # false promises are believed


def test_adjustments_come_whole_or_not_at_all() -> None:
    axes = {"rows": 1, "logits": 1, "vocab": 9, "adjustments": 1}
    partial = Problem("sample", axes, {}, "fp32", frozenset(("adjust_rows", "adjust_add")))
    assert "only adjust_add, adjust_rows" in str(TACTIC.why_not(partial, CPU))


@pytest.mark.parametrize("name", ["adjust_divide", "adjust_add", "adjust_rows", "adjust_tokens"])
def test_a_neglected_adjustment_is_refused(name: str) -> None:
    def neglecting(out: Any, ins: Any, params: Any, workspace: Any) -> None:
        wrong = {"adjust_divide": 1.0, "adjust_add": 0.0, "adjust_rows": -1, "adjust_tokens": 0}
        TACTIC.run(out, {**ins, name: torch.full_like(ins[name], wrong[name])}, params, workspace)

    planted = dataclasses.replace(TACTIC, run=neglecting)  # type: ignore[type-var]
    axes = {"rows": 64, "logits": 3, "vocab": 1003, "adjustments": 200}
    result = check.check(planted, Problem("sample", axes, {}, "fp32", ADJUSTED), CPU)
    assert "bit for bit" in str(result.reason)


def test_a_row_adjusted_with_anothers_entries_is_seen() -> None:
    def shifted(out: Any, ins: Any, params: Any, workspace: Any) -> None:
        rows = ins["adjust_rows"]
        wrong = torch.where(rows < 0, rows, (rows + 1) % max(len(ins["rows"]), 1))
        TACTIC.run(out, {**ins, "adjust_rows": wrong}, params, workspace)

    planted = dataclasses.replace(TACTIC, run=shifted)  # type: ignore[type-var]
    few = Problem("sample", {"rows": 1, "logits": 5, "vocab": 77, "adjustments": 4}, {}, "fp32", ADJUSTED)
    assert "has other bits" in str(check.check_rows(planted, few, CPU))


def test_greedy_rows_are_not_sorted() -> None:
    """A vocabulary of 50,000 takes tens of milliseconds to sort; a greedy row must not wait for that."""
    logits = torch.randn(1, 50_257, generator=torch.Generator().manual_seed(7))

    def best(how: dict[str, Any]) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            draw(logits, how)
            taken.append(time.perf_counter() - start)
        return min(taken)

    order = min(_timed_sort(logits) for _ in range(3))
    assert best({"temperature": 0.0, "top_p": 0.9}) < order / 3


def _timed_sort(logits: torch.Tensor) -> float:
    start = time.perf_counter()
    logits.double().sort(descending=True, stable=True)
    return time.perf_counter() - start
