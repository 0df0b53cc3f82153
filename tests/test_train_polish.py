"""The second training's parts: what is avoided, how windows are packed, that rounding leaves no trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from allotrope import tokenizers
from tools.train import polish, writing
from tools.train.spec import MODELS, load


def test_likely_tokens_are_learned_and_avoided_ones_unlearned() -> None:
    """By hand: probabilities 1/2 and 1/4; the first is wanted wholly, the second avoided by half, the third ignored."""
    nats = torch.tensor([[math.log(2), math.log(4), math.log(8)]])
    found = polish.wanted(nats, torch.tensor([[100, -50, 0]], dtype=torch.int16))
    assert float(found) == pytest.approx(math.log(2) + 0.5 * -math.log(3 / 4))
    certain = torch.zeros(1, 2, requires_grad=True)
    polish.wanted(certain, torch.tensor([[100, -100]])).backward()
    assert torch.isfinite(certain.grad).all(), "a token that is certain to repeat must still give a gradient"


def test_only_the_third_time_of_a_line_is_avoided() -> None:
    tokenizer = tokenizers.load(MODELS / "pycoder", 6144)
    text = "    a = 1\n    b = 2\n    a = 1\n\n\n\n    a = 1\n    c = 3\n    a = 1\n"
    ids = tokenizer.encode(text, special=False)
    weights = writing.repeated(tokenizer, ids)
    avoided = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight])
    assert set(weights) == {0, writing.AVOIDED}
    assert avoided.split() == ["a", "=", "1", "a", "=", "1"]


def test_windows_are_full_and_pieces_whole() -> None:
    room = polish.RECIPE.window
    pieces = [([n] * length, [n] * length) for n, length in ((1, room - 5), (2, 10), (3, room), (4, 3))]
    windows = list(writing.packed(iter(pieces), end=0, window=room))
    assert [len(ids) for ids, _ in windows] == [room + 1] * 4
    assert [sorted(set(ids)) for ids, _ in windows] == [[0, 1], [0, 2], [0, 3], [0, 4]]
    for ids, percent in windows:
        assert ids == percent, "a token and its weight stay together, and what fills up weighs nothing"


def test_weights_are_themselves_again_after_a_rounded_step() -> None:
    model = torch.nn.Module()
    model.linear = torch.nn.Linear(64, 64, bias=False)
    table = torch.nn.Embedding(4, 64)
    model.get_input_embeddings = lambda: table
    model.get_output_embeddings = lambda: torch.nn.Linear(64, 4)
    before, seen = model.linear.weight.detach().clone(), set()
    random = np.random.default_rng(0)
    for _ in range(12):
        with polish.some_rounding(model, random):
            seen.add(torch.equal(model.linear.weight, before))
        assert torch.equal(model.linear.weight, before)
    assert seen == {True, False}, "some steps are rounded, some are not"


def test_only_a_model_with_a_second_training_is_polished() -> None:
    with pytest.raises(SystemExit, match="docsum has no second training; pycoder has"):
        polish.restored(load("docsum"), MODELS / "docsum")
    missing = MODELS.parent / "build" / "nowhere"
    with pytest.raises((SystemExit, OSError)):
        polish.restored(load("pycoder"), missing)
