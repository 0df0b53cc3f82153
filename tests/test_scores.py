"""Log-probabilities of given tokens and the likeliest ones: right, and the same bits in any company."""

from __future__ import annotations

import pytest
import torch

from allotrope.ops import registry
from allotrope.ops.contract import Problem
from allotrope.ops.sample.scores import score
from tests.engines import CPU

TACTIC = registry.tactic("sample", "torch_sample")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared."""


def some(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(rows + vocab)
    logits = torch.randn(rows, vocab, generator=random) * 3
    logits[::2] = (logits[::2] * 2).round() / 2  # ties
    return logits.to(dtype)


def raw(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 50, 3001])
def test_they_are_the_log_softmax_in_order(vocab: int, dtype: torch.dtype) -> None:
    logits = some(20, vocab, dtype)
    rows, given = torch.tensor([3, 3, 0, 19]), torch.tensor([0, vocab - 1, vocab // 2, 0])
    found = score(logits, rows, given, 12)
    truth = logits[rows].double().log_softmax(-1)
    assert (found.given.double() - truth.gather(1, given[:, None])[:, 0]).abs().max() < 2e-6
    for row, tokens in zip(truth, found.likeliest.tolist(), strict=True):
        ranked = sorted(range(vocab), key=lambda token: (-row[token].item(), token))
        assert tokens == ranked[:12]
    assert (found.values.double() - truth.gather(1, found.likeliest)).abs().max() < 2e-6


def test_zeros_of_either_sign_rank_by_index() -> None:
    logits = torch.tensor([[-1.0, 0.0, -0.0, 0.0, -0.0, -2.0]])
    assert score(logits, torch.tensor([0]), torch.tensor([0]), 6).likeliest.tolist() == [[1, 2, 3, 4, 0, 5]]


def test_the_bits_of_a_row_are_its_own() -> None:
    logits = some(70, 2003)
    hostile = logits.clone()
    hostile[1::2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38, 0.0]).repeat(7)[:, None]
    rows, given = torch.arange(0, 70, 2), torch.arange(35) * 13
    for count in (0, 1, 9):
        alone = [score(logits, rows[i : i + 1], given[i : i + 1], count) for i in range(35)]
        for batch in (score(logits, rows, given, count), score(hostile, rows, given, 20)):
            for i, one in enumerate(alone):
                assert torch.equal(raw(batch.given[i]), raw(one.given[0]))
                assert torch.equal(batch.likeliest[i, :count], one.likeliest[0])
                assert torch.equal(raw(batch.values[i, :count]), raw(one.values[0]))


def test_a_token_has_one_log_probability_drawn_given_or_likeliest() -> None:
    logits = some(8, 1500)
    ins = {
        "logits": logits,
        "rows": torch.arange(8),
        "temperature": torch.full((8,), 0.8),
        "top_k": torch.full((8,), 10, dtype=torch.int32),
        "top_p": torch.ones(8),
        "min_p": torch.zeros(8),
        "seeds": torch.arange(8),
        "sample_positions": torch.arange(8),
    }
    out = {"tokens": torch.zeros(8, 1, dtype=torch.int64), "logprobs": torch.zeros(8, 1)}
    problem = Problem("sample", {"rows": 8, "logits": 8, "vocab": 1500}, {}, "fp32")
    TACTIC.run(out, ins, {}, torch.empty(TACTIC.workspace(problem, CPU), dtype=torch.uint8))
    found = score(logits, torch.arange(8), out["tokens"][:, 0], 10)
    assert torch.equal(raw(found.given), raw(out["logprobs"][:, 0]))
    place = (found.likeliest == out["tokens"]).nonzero()
    assert len(place) == 8
    assert torch.equal(raw(found.values[tuple(place.T)]), raw(found.given))


def test_rows_without_a_maximum_have_no_log_probabilities() -> None:
    logits = some(4, 60)
    logits[1, 5], logits[2, 6], logits[3] = torch.nan, torch.inf, -torch.inf
    found = score(logits, torch.arange(4), torch.zeros(4, dtype=torch.int64), 3)
    assert found.given.isnan().tolist() == [False, True, True, True]
    assert found.likeliest.min() >= 0 and found.likeliest.max() < 60
