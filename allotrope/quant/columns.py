"""Some columns of a weight, rounded one after the other; each answers for the errors of those before it.

That is some twenty small operations a column. A GPU computes them faster than a host can launch them one by one, so
there they are recorded once for each shape and replayed: the same operations, and so the same codes. Recordings hold
memory of the device until whoever quantises a model says that it is done (`forget_recordings`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from allotrope.quant.formats import Format, decode
from allotrope.quant.rounding import encode

_KEPT = 8  # recordings: the shapes of a block's layers, and a few more
Rounded = tuple[torch.Tensor, torch.Tensor]


def round_columns(
    values: torch.Tensor, upper: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, form: Format
) -> Rounded:
    """(codes as bytes, errors over U's diagonal), both like `values` [out, n]; scales and zeros are [out, n], too.

    `upper` [n, n] is the piece of U that belongs to these columns.
    """
    if values.device.type != "cuda":
        return _one_by_one(values.clone(), upper, scales, zeros, form)
    recording = _recording(values.shape, values.dtype, scales.dtype, zeros is not None, form, values.device)
    return recording.replay(values, upper, scales, zeros)


def forget_recordings() -> None:
    """Give back what recordings hold; who rounds on is recorded anew."""
    _recording.cache_clear()


def _one_by_one(
    values: torch.Tensor, upper: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, form: Format
) -> Rounded:
    """As `round_columns`; the values are used up."""
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    errors = torch.empty_like(values)
    for i in range(values.shape[1]):
        zero = None if zeros is None else zeros[:, i]
        code = encode(values[:, i], scales[:, i], zero, form)
        codes[:, i] = code.view(torch.uint8)
        errors[:, i] = (values[:, i] - decode(code, scales[:, i], zero, values.dtype)) / upper[i, i]
        values[:, i + 1 :] -= errors[:, i : i + 1] * upper[i, i + 1 :]
    return codes, errors


class _Recording:
    """`_one_by_one` as one CUDA graph over buffers of its own."""

    def __init__(
        self, values: torch.Tensor, upper: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, form: Format
    ) -> None:
        self._given = (values, upper, scales, zeros)
        ahead: Any = torch.cuda.Stream(values.device)  # type: ignore[no-untyped-call]
        ahead.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(ahead):  # whatever is set up at the first call must not be recorded
            _one_by_one(values, upper, scales, zeros, form)
        torch.cuda.current_stream(values.device).wait_stream(ahead)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = _one_by_one(values, upper, scales, zeros, form)

    def replay(
        self, values: torch.Tensor, upper: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> Rounded:
        for held, new in zip(self._given, (values, upper, scales, zeros), strict=True):
            if held is not None and new is not None:
                held.copy_(new)
        self._graph.replay()
        codes, errors = self._found
        return codes.clone(), errors.clone()


@lru_cache(maxsize=_KEPT)
def _recording(
    shape: torch.Size, dtype: torch.dtype, scales: torch.dtype, zeros: bool, form: Format, device: torch.device
) -> _Recording:
    height, width = shape
    ones = torch.ones(height, width, dtype=scales, device=device)
    return _Recording(
        torch.zeros(height, width, dtype=dtype, device=device),
        torch.eye(width, dtype=dtype, device=device),
        ones,
        torch.zeros(height, width, dtype=torch.uint8, device=device) if zeros else None,
        form,
    )
