"""What is drawn has the right frequencies: each filter, their combinations, penalties and bias, by chi-square.

The truth is a plain NumPy version of each step's definition, which shares no code with the sampler. Seeds are
fixed, so nothing here fails by luck; that the test would notice a mistake is shown with planted ones.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.contract import Problem
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.request import Limits, new_request
from allotrope.runtime.sampling_params import SamplingParams
from allotrope.runtime.scheduler import Scheduler
from tests.engines import CPU, LLAMA, VOCAB, MemoryEngine, naive, plan_of, random_weights

Row = npt.NDArray[np.float64]
TACTIC = registry.tactic("sample", "torch_sample")
DRAWS = 5_000
RANDOM = np.random.default_rng(12)
SMALL = RANDOM.normal(0, 1.2, 14).round(1)  # with ties


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


def softmax(logits: Row) -> Row:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def penalised(logits: Row, how: dict[str, Any]) -> Row:
    """Repetition, then presence and frequency penalties and bias; what is forbidden goes last."""
    found = logits.copy()
    for token in {*how.get("prompt", ()), *how.get("output", ())}:
        penalty = how.get("repetition", 1.0)
        found[token] = found[token] / penalty if found[token] > 0 else found[token] * penalty
    for token, times in Counter(how.get("output", ())).items():
        found[token] -= how.get("presence", 0.0) + how.get("frequency", 0.0) * times
    for token, bias in how.get("bias", {}).items():
        found[token] += bias
    found[list(how.get("banned", ()))] = -np.inf
    return found


def top_k(shares: Row, how: dict[str, Any]) -> Row:
    best = np.argsort(-shares, kind="stable")[: how.get("top_k") or len(shares)]
    kept = np.zeros_like(shares)
    kept[best] = shares[best]
    return kept / kept.sum()


def top_p(shares: Row, how: dict[str, Any]) -> Row:
    best = np.argsort(-shares, kind="stable")
    enough = int(np.searchsorted(np.cumsum(shares[best]), how.get("top_p", 1.0) - 1e-12)) + 1
    kept = np.zeros_like(shares)
    kept[best[:enough]] = shares[best[:enough]]
    return kept / kept.sum()


def min_p(shares: Row, how: dict[str, Any]) -> Row:
    kept = np.where(shares >= how.get("min_p", 0.0) * shares.max(), shares, 0.0)
    return kept / kept.sum()


def distribution(logits: Row, how: dict[str, Any]) -> Row:
    shares = softmax(penalised(logits, how) / how.get("temperature", 1.0))
    return min_p(top_p(top_k(shares, how), how), how)


def agrees(counts: npt.NDArray[np.int64], expected: Row) -> bool:
    """Whether draws can come from this distribution: less than one healthy run in 10,000 is beyond the bound."""
    if counts[expected == 0].any():
        return False
    shares, seen, total = expected[expected > 0], counts[expected > 0], counts.sum()
    order = np.argsort(shares)
    shares, seen = shares[order], seen[order]
    while len(shares) > 1 and shares[0] * total < 5:  # too rare for the statistic: counted together
        shares, seen = np.append(shares[0] + shares[1], shares[2:]), np.append(seen[0] + seen[1], seen[2:])
        order = np.argsort(shares, kind="stable")
        shares, seen = shares[order], seen[order]
    chi, freedom = float(((seen - shares * total) ** 2 / (shares * total)).sum()), len(shares) - 1
    if freedom == 0:
        return chi == 0
    spread = 2 / (9 * freedom)  # Wilson and Hilferty's approximation
    return chi <= freedom * (1 - spread + 3.72 * math.sqrt(spread)) ** 3


def draw(logits: Row, how: dict[str, Any], seed: int) -> npt.NDArray[np.int64]:
    """How often the sampler draws each token."""
    vocab = len(logits)
    entries = []
    counts = Counter(how.get("output", ()))
    for token in range(vocab):
        divide = how.get("repetition", 1.0) if token in {*how.get("prompt", ()), *counts} else 1.0
        add = how.get("bias", {}).get(token, 0.0) - how.get("frequency", 0.0) * counts[token]
        add -= how.get("presence", 0.0) if counts[token] else 0.0
        add = -np.inf if token in how.get("banned", ()) else add
        if (divide, add) != (1.0, 0.0):
            entries.append((token, divide, add))
    batch = 1000
    tokens, divide, add = (
        (torch.tensor(part) for part in zip(*entries, strict=True)) if entries else [torch.zeros(0)] * 3
    )
    ins = {
        "logits": torch.from_numpy(logits).float()[None],
        "rows": torch.zeros(batch, dtype=torch.int64),
        "temperature": torch.full((batch,), how.get("temperature", 1.0)),
        "top_k": torch.full((batch,), how.get("top_k", 0), dtype=torch.int32),
        "top_p": torch.full((batch,), how.get("top_p", 1.0)),
        "min_p": torch.full((batch,), how.get("min_p", 0.0)),
        "seeds": torch.full((batch,), seed),
        "adjust_rows": torch.arange(batch).repeat_interleave(len(tokens)),
        "adjust_tokens": tokens.long().repeat(batch),
        "adjust_divide": divide.float().repeat(batch),
        "adjust_add": add.float().repeat(batch),
    }
    problem = Problem("sample", {"rows": batch, "logits": 1, "vocab": vocab}, {}, "fp32")
    workspace = torch.empty(TACTIC.workspace(problem, Device("cpu", "", "", 1, 1)), dtype=torch.uint8)
    found = np.zeros(vocab, np.int64)
    for start in range(0, DRAWS, batch):
        out = {"tokens": torch.zeros(batch, 1, dtype=torch.int64), "logprobs": torch.zeros(batch, 1)}
        TACTIC.run(out, ins | {"sample_positions": torch.arange(start, start + batch)}, {}, workspace)
        found += np.bincount(out["tokens"][:, 0].numpy(), minlength=vocab)
    return found


FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
}
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition": {"repetition": 1.6, "prompt": [0, 3, 5], "output": [3, 8]},
    "presence and frequency": {"presence": 0.8, "frequency": 0.4, "prompt": [1], "output": [2, 2, 2, 7, 9]},
    "bias and ban": {"bias": {0: 1.5, 4: -0.7}, "banned": [2, 11]},
}
CHANGES["all"] = {name: value for how in list(CHANGES.values())[1:] for name, value in how.items()} | {"output": [2, 8]}
COMBINATIONS = [names for size in range(5) for names in itertools.combinations(FILTERS, size)]
CASES = [(names, change) for names in COMBINATIONS for change in ("nothing", "all")]
CASES += [(names, change) for names in (COMBINATIONS[0], COMBINATIONS[-1]) for change in list(CHANGES)[1:-1]]


@pytest.mark.parametrize(("names", "change"), CASES, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_every_combination(names: tuple[str, ...], change: str) -> None:
    how = CHANGES[change] | {name: value for each in names for name, value in FILTERS[each].items()}
    assert agrees(draw(SMALL, how, seed=len(names)), distribution(SMALL, how))


def test_of_a_vocabulary_that_is_not_sorted_whole() -> None:
    """Above 1,024 words a CPU ranks only the likeliest."""
    logits = np.concatenate([SMALL, RANDOM.normal(-4, 1, 1100)])
    for names in (("top_k",), ("top_p",), ("min_p",), tuple(FILTERS)):
        how = CHANGES["all"] | {name: value for each in names for name, value in FILTERS[each].items()}
        assert agrees(draw(logits, how, seed=5), distribution(logits, how)), names


def _late_penalty(logits: Row, how: dict[str, Any]) -> Row:
    """The penalties after the temperature."""
    shares = softmax(penalised(logits / how["temperature"], how))
    return min_p(top_p(top_k(shares, how), how), how)


def _always_divides(logits: Row, how: dict[str, Any]) -> Row:
    """Negative logits made likelier by a repetition penalty."""
    found = logits.copy()
    found[list({*how["prompt"], *how["output"]})] /= how["repetition"]
    return distribution(found, {name: value for name, value in how.items() if name != "repetition"})


def _filters(order: tuple[Callable[[Row, dict[str, Any]], Row], ...]) -> Callable[[Row, dict[str, Any]], Row]:
    def planted(logits: Row, how: dict[str, Any]) -> Row:
        shares = softmax(penalised(logits, how) / how["temperature"])
        for step in order:
            shares = step(shares, how)
        return shares

    return planted


def _whole_mass(logits: Row, how: dict[str, Any]) -> Row:
    """top_p of the whole mass, although top_k has taken some of it away."""
    shares = softmax(penalised(logits, how) / how["temperature"])
    kept = (top_k(shares, how) > 0) & (top_p(shares, how) > 0)
    return min_p(np.where(kept, shares, 0) / shares[kept].sum(), how)


USUAL = {"temperature": 1.3, "top_k": 10, "top_p": 0.88, "min_p": 0.2}
USUAL |= {"repetition": 1.5, "presence": 0.3, "frequency": 0.2, "prompt": [0, 3, 5], "output": [3, 8, 12]}
PLANTED: dict[str, tuple[Callable[[Row, dict[str, Any]], Row], dict[str, Any]]] = {
    "min_p before top_p": (_filters((top_k, min_p, top_p)), {}),
    "top_p before top_k": (_filters((top_p, top_k, min_p)), {}),
    "min_p first": (_filters((min_p, top_k, top_p)), {}),
    "no top_k": (_filters((top_p, min_p)), {}),
    "no top_p": (_filters((top_k, min_p)), {}),
    "no min_p": (_filters((top_k, top_p)), {"min_p": 0.4}),
    "top_p of the whole mass": (_whole_mass, {}),
    "penalties after the temperature": (_late_penalty, {}),
    "always divides": (_always_divides, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_would_be_seen(mistake: str) -> None:
    """The draws of a sampler with this mistake are refused by the tests above; those of a right one pass."""
    planted, more = PLANTED[mistake]
    how, random = USUAL | more, np.random.default_rng(3)
    right = distribution(SMALL, how)
    assert agrees(random.multinomial(DRAWS, right), right)
    assert agrees(draw(SMALL, how, seed=3), right)
    assert not agrees(random.multinomial(DRAWS, planted(SMALL, how)), right)


def test_a_small_shift_would_be_seen() -> None:
    """A temperature that is off by 15 %, a bias by 0.3."""
    for how in ({"temperature": 1.15}, {"temperature": 0.85}, {"bias": {int(SMALL.argmax()): 0.3}}):
        counts = np.random.default_rng(4).multinomial(DRAWS, distribution(SMALL, how))
        assert not agrees(counts, distribution(SMALL, {})), how


@pytest.mark.parametrize(
    ("given", "how"),
    [
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 1.2}, {}),
        ({"top_p": 0.9, "repetition_penalty": 1.8}, {"repetition": 1.8, "prompt": [5, 6, 7, 230, 10, 28]}),
        ({"logit_bias": {230: -0.4, 46: -100.0}, "temperature": 0.8}, {"bias": {230: -0.4, 46: -100.0}}),
        ({"min_tokens": 1, "stop_token_ids": [230, 2], "top_k": 12}, {"banned": [230, 2]}),
    ],
    ids=str,
)
def test_from_a_requests_parameters_to_its_token(given: dict[str, Any], how: dict[str, Any]) -> None:
    """The whole way: 3,000 requests with one prompt, each with its own seed, through scheduler and executor."""
    count, prompt = 3000, [5, 6, 7, 230, 10, 28]  # a prompt whose own tokens are likely next
    logits = naive(LLAMA, random_weights(LLAMA), prompt)[-1].double().numpy()
    engine = MemoryEngine(plan_of(LLAMA), random_weights(LLAMA))
    runner = EagerExecutor(engine, device=CPU, pages=64, page_size=4, max_tokens=256, max_requests=64, threads=1)
    scheduler = Scheduler(runner.pages, runner.page_size, 64, 256, 64)
    requests = [
        new_request(i, prompt, SamplingParams(max_tokens=1, seed=7919 * i, **given), Limits(VOCAB, 64))
        for i in range(count)
    ]
    for request in requests:
        scheduler.submit(request)
    while (step := scheduler.plan_step()) is not None:
        scheduler.commit(runner.run(step))
    counts = np.bincount([request.output[0] for request in requests], minlength=VOCAB)
    filters = {name: given[name] for name in ("top_k", "top_p", "min_p", "temperature") if name in given}
    assert agrees(counts, distribution(logits, filters | how))
    if how:
        assert not agrees(counts, distribution(logits, filters))
