"""What a checkpoint is to everybody above: a config and named tensors, read one at a time.

A checkpoint is named by a *ref*: a folder or `random:SHAPE`. What opens and reads one is in `readers/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from allotrope.models.dtypes import DTYPES

RANDOM = "random:"


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's shape and dtype tag, known from the header alone."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """How many values; Python's integers do not overflow."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.count * DTYPES[self.dtype].itemsize


class Checkpoint(Protocol):
    """A config and the tensors that go with it. Nothing is read before it is asked for."""

    @property
    def origin(self) -> str:
        """The ref to open the same checkpoint again: an absolute folder, or `random:SHAPE`."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as published."""

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json; empty where there is none."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor, by the checkpoint's own names."""

    @property
    def folder(self) -> Path | None:
        """Where the tokenizer's files lie; None for `random:SHAPE`."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor in memory of its own; bf16 as uint16."""

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows `start` to `stop` of a tensor's first axis."""

    def digest(self) -> str:
        """Changes when headers, sizes or times change; costs no reading of the weights."""
