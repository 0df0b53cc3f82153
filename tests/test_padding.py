"""Steps padded to one of a few sizes: what fits, and that all that can come finds a size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from allotrope.runtime.padding import Padding, buckets
from tests.test_graph import PAGE, Traffic

PER_ROW = (
    *("slots", "first", "pages", "want", "sample", "prompt_lens", "temperature", "top_k", "top_p", "min_p"),
    *("seeds", "candidates"),
)


def test_padding_fits_or_is_not_tried() -> None:
    """Tokens left over need a row to lie in, at positions that the model has."""
    padding = Padding(PAGE, 8, 40, tokens=(4, 16, 32), rows=(1, 2, 4, 8), widths=(2, 4), max_len=12)
    for step in Traffic(300, 12, slots=7, seed=11).steps(300):
        sizes = padding.sizes(step, True)
        if sizes is None:
            continue
        padded = padding.around(step, sizes)
        counts = np.diff(padded.starts)
        assert (len(padded.tokens), padded.rows) == (sizes.tokens, sizes.rows) and (counts > 0).all()
        assert (padded.tokens[: len(step.tokens)] == step.tokens).all()
        assert (padded.first + counts).max() <= padding.max_len
        assert padded.pages.shape[1] * PAGE >= (padded.first + counts).max()
        assert (padded.slots[step.rows :] == 8).all() and (padded.pages[step.rows :] == 40).all()
        assert {name: array.shape for name, array in padding.arrays(padded, step.sample).items()} == {
            name: array.shape for name, array in padding.arrays(padding.alone(sizes)).items()
        }
    one = Traffic(300, 12, slots=1, seed=1)
    long = next(step for step in one.steps(99) if len(step.tokens) == 5)
    assert padding.sizes(long, True) is None or padding.sizes(long, True).tokens == 16  # type: ignore[union-attr]
    assert replace(padding, tokens=()).sizes(long, True) is None
    assert replace(padding, max_len=3).sizes(long, True) is None
    assert replace(padding, rows=(0,)).sizes(long, True) is None


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("requests", [1, 2, 8])
def test_prompts_of_any_length_find_a_size(requests: int, unit: int) -> None:
    """Exactly a size's, one less than it, and with a row in every slot there is: all can be recorded."""
    padding = Padding(PAGE, requests, 40, (16, 32, 48, 64), buckets(requests, unit), (4, 8, 16), max_len=64)
    step = next(Traffic(300, 12, slots=1, seed=1).steps(1))
    for rows in range(1, requests + 1):
        for count in range(rows + 1, 49):
            lengths = np.full(rows, count // rows)
            lengths[: count % rows] += 1
            prompts = replace(
                step,
                **{name: np.repeat(getattr(step, name), rows, 0) for name in PER_ROW},
                starts=np.array([0, *np.cumsum(lengths)], np.int32),
                tokens=np.zeros(count, np.int32),
            )
            sizes = padding.sizes(prompts, True)
            assert sizes is not None and count <= sizes.tokens <= max(32, 2 * count)
            assert sizes.rows <= padding.most_rows


def test_sizes_grow_in_small_steps() -> None:
    assert buckets(64, 1) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert buckets(50, 8) == (8, 16, 24, 32, 48, 50)
    assert buckets(3, 8) == (3,)
    for most in range(1, 300, 7):
        found = buckets(most, 1)
        assert found[-1] == most and list(found) == sorted(set(found))
        assert all(next(size for size in found if size >= n) * 2 <= n * 3 for n in range(1, most + 1))
