"""Beam search against transformers' own, on tiny models, with log-probabilities that transformers computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.runtime.beams import BeamSearch, EarlyStopping, Hypothesis
from tests.tiny import oracle, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
EOS, PAD = 2, 130


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return oracle(tiny("llama", Path(tmp_path_factory.mktemp("beams")) / "llama"))


def likely(model: Any, sequences: list[list[int]], count: int) -> list[tuple[tuple[int, float], ...]]:
    with torch.inference_mode():
        logits = model(torch.tensor(sequences)).logits[:, -1].float()
    values, tokens = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
    return [tuple(zip(t, v, strict=True)) for t, v in zip(tokens.tolist(), values.tolist(), strict=True)]


def search(model: Any, prompt: list[int], ends: tuple[int, ...] = (EOS,), tokens: int = 20, **how: Any) -> BeamSearch:
    beams = BeamSearch(how["width"], ends, how["length_penalty"], how["early_stopping"], tokens)
    sequences = [list(prompt)]
    while (chosen := beams.advance(likely(model, sequences, beams.wanted))) is not None:
        sequences = [[*sequences[parent], token] for parent, token in chosen]
        assert [tuple(sequence[len(prompt) :]) for sequence in sequences] == beams.outputs()
    return beams


def theirs(
    model: Any, prompt: list[int], width: int, length_penalty: float, early_stopping: EarlyStopping, ends: Any = EOS
) -> tuple[list[list[int]], list[float]]:
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        max_new_tokens=20,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_token_id=ends,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return [row[len(prompt) :].tolist() for row in found.sequences], found.sequences_scores.tolist()


def padded(hypothesis: Hypothesis, length: int) -> list[int]:
    return [*hypothesis.tokens, *[PAD] * (length - len(hypothesis.tokens))]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_beams_are_those_of_transformers(
    model: Any, width: int, length_penalty: float, early_stopping: EarlyStopping
) -> None:
    if width == 1:  # there transformers calls it greedy and has no score; ours must be the greedy text
        (best,) = search(model, [5, 9, 3], ends=(), width=1, length_penalty=1.0, early_stopping=False).best(1)
        ids = model.generate(torch.tensor([[5, 9, 3]]), max_new_tokens=20, do_sample=False, eos_token_id=-1)
        assert list(best.tokens) == ids[0, 3:].tolist()
        return
    for prompt in ([5, 9, 3], [1], [100, 4, 77, 21, 8, 8, 8]):
        sequences, scores = theirs(model, prompt, width, length_penalty, early_stopping)
        ours = search(model, prompt, width=width, length_penalty=length_penalty, early_stopping=early_stopping).best(
            width
        )
        assert [padded(hypothesis, len(sequences[0])) for hypothesis in ours] == sequences
        assert [hypothesis.score for hypothesis in ours] == pytest.approx(scores, rel=1e-5)


def test_many_ends_let_beams_stop_early_and_be_ranked(model: Any) -> None:
    """With a quarter of the vocabulary ending a text, most beams end at different lengths."""
    ends, lengths = list(range(2, 34)), set[int]()
    for prompt in ([5, 9, 3], [1], [100, 4, 77]):
        for early in (True, False, "never"):
            sequences, scores = theirs(model, prompt, 3, 1.0, early, ends)
            ours = search(model, prompt, tuple(ends), width=3, length_penalty=1.0, early_stopping=early).best(3)
            assert [padded(hypothesis, len(sequences[0])) for hypothesis in ours] == sequences
            assert [hypothesis.score for hypothesis in ours] == pytest.approx(scores, rel=1e-5)
            lengths |= {len(hypothesis.tokens) for hypothesis in ours}
    assert len(lengths) > 1


def test_beams_ask_for_no_more_candidates_than_can_matter() -> None:
    """A stop token can take the place of one candidate of each beam, and no more: a thousand cost no millions."""
    assert [BeamSearch(width, range(ends), 1.0, False, 8).wanted for width, ends in ((4, 0), (4, 1), (16, 1024))] == [
        4,
        5,
        1040,
    ]


def test_a_text_that_ends_at_once_is_kept_and_ranked_by_its_length() -> None:
    """By hand: two beams, length penalty 1. Token 2 ends at -1.0; going on gives -0.6, then -0.6 - 0.2."""
    beams = BeamSearch(2, (2,), 1.0, True, 8)
    assert beams.advance([((7, -0.6), (2, -1.0), (8, -1.5), (9, -2.0))]) == [(0, 7), (0, 8)]
    first = ((2, -0.2), (5, -1.9), (6, -2.0), (7, -2.5))
    assert beams.advance([first, ((5, -0.1), (6, -3.0), (7, -3.1), (8, -3.2))]) is None
    (best, second) = beams.best(2)
    assert (best.tokens, best.finish_reason) == ((7, 2), "stop")
    assert best.score == pytest.approx(-0.4)
    assert (second.tokens, second.score) == ((2,), -1.0)
    assert best.logprobs == (-0.6, -0.2)
