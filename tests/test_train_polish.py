"""The second training's parts: what is avoided, how windows are packed, that rounding leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from allotrope import tokenizers
from tests.test_train_fit import made_up
from tools.train import polish, writing
from tools.train.evaluation.lm import Continuation
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


class Says:
    """A model that answers every prompt with the same text."""

    def __init__(self, text: str, ended: bool = False) -> None:
        self.tokenizer = tokenizers.load(MODELS / "pycoder", 6144)
        self._said = Continuation(tuple(self.ids(text)), ended)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False, allow_special=False)

    def write(self, prompts: Sequence[Sequence[int]], limit: int, **_: Any) -> list[Continuation]:
        assert limit >= writing.LINE
        return [self._said for _ in prompts]


ROWS = [made_up(number) for number in range(60)]


def test_of_its_own_middles_only_the_end_is_learned() -> None:
    """After as many lines as were taken out, whatever they say; the text went on."""
    model: Any = Says("    a = 1\n    b = 2\n    c = 3\n    d = 4\n    e = 5\n    f = 6\n    g = 7\n")
    pieces, told = writing.middles(model, ROWS, seed=0)
    asked = list(writing.holes(model, ROWS, seed=0))
    assert told == {"middles": len(asked), "ended": 0}
    assert len(pieces) == len(asked) > 10
    assert len({lines for _, lines in asked}) > 1
    for (ids, percent), (prompt, lines) in zip(pieces, asked, strict=True):
        assert list(ids[: len(prompt)]) == prompt
        own = model.tokenizer.decode(list(ids[len(prompt) : -1]), skip_special=False)
        assert own.count("\n") == lines and own.endswith("\n") and own.startswith("    a = 1\n")
        assert ids[-1] == model.tokenizer.eos_ids[0]
        assert percent == [0] * (len(ids) - 2) + [writing.ENDED] * 2


def test_middles_that_break_off_or_say_nothing_teach_nothing() -> None:
    for text in ("    a = 1", "\n\n\n\n\n\n\n\n"):
        broken: Any = Says(text)
        assert writing.middles(broken, ROWS, seed=0)[0] == []
    one: Any = Says("    a = 1\n", ended=True)
    _, told = writing.middles(one, ROWS, seed=0)
    asked = [lines for _, lines in writing.holes(one, ROWS, seed=0)]
    assert told["ended"] == pytest.approx(asked.count(1) / len(asked), abs=1e-4)
