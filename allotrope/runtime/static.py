"""The static memory that recorded steps read and write: what each step is given, and what it leaves.

All row counts share the same bytes, for steps run one after the other. A step's arrays travel in one copy each way:

    joint      [ drawn: a token per slot ][ tokens of the step | positions | … | page table ]
    results    [ tokens | log-probabilities | sums of the logits ]

A row's token is taken from `joint` by index: its own place among the step's tokens, or that of its slot, where the
token drawn last stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from allotrope.runtime.buffers import allocate, fill_poison, torch_dtype

if TYPE_CHECKING:
    import torch

ALIGN = 64
Arrays = Mapping[str, npt.NDArray[Any]]


def _rounded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def ahead(slots: int) -> int:
    """Where, behind the drawn tokens of so many slots, a step's own begin in `joint`."""
    return _rounded(8 * slots) // 8


@dataclass(frozen=True)
class Layout:
    """Where each array of a kind of step lies in the block, tokens first."""

    places: Mapping[str, tuple[int, tuple[int, ...], np.dtype[Any]]]
    size: int

    @staticmethod
    def of(arrays: Arrays) -> Layout:
        """The layout for steps whose arrays have these shapes."""
        places, at = {}, 0
        for name in sorted(arrays, key=lambda name: name != "tokens"):
            places[name] = at, arrays[name].shape, arrays[name].dtype
            at += _rounded(arrays[name].nbytes)
        return Layout(places, at)

    def fill(self, block: npt.NDArray[np.uint8], arrays: Arrays) -> None:
        """Write the arrays' bytes into the block."""
        for name, (start, shape, dtype) in self.places.items():
            array = arrays[name]
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}; this kind of step has {dtype} {shape}")
            block[start : start + array.nbytes].view(dtype)[:] = array.reshape(-1)


class Static:
    """The memory. `slots` is how many slots there are, the one for rows of padding included."""

    def __init__(self, slots: int, most_bytes: int, most_rows: int, device: str, poison: bool) -> None:
        import torch

        self.ahead = ahead(slots)
        self._memory = allocate("a step's inputs", (8 * self.ahead + most_bytes,), torch.uint8, device, poison)
        self._results = allocate("a step's results", (16 * most_rows,), torch.uint8, device, poison)
        self._device = device
        self.drawn = self._memory[: 8 * slots].view(torch.int64)
        self.drawn.zero_()

    def joint(self, rows: int) -> torch.Tensor:
        """The drawn tokens and, from `ahead` on, the step's."""
        import torch

        return self._memory[: 8 * (self.ahead + rows)].view(torch.int64)

    def views(self, layout: Layout) -> dict[str, torch.Tensor]:
        """The layout's arrays on the device."""
        import torch

        found = {}
        for name, (start, shape, dtype) in layout.places.items():
            at = 8 * self.ahead + start
            flat = self._memory[at : at + dtype.itemsize * int(np.prod(shape))]
            found[name] = flat.view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)
        return found

    def send(self, layout: Layout, arrays: Arrays) -> None:
        """Bring a step's arrays to their places, in one copy."""
        import torch

        # Pinned memory comes from torch's cache, which reuses a block only when its copy has been done.
        staged = torch.empty(layout.size, dtype=torch.uint8, pin_memory=self._device != "cpu")
        layout.fill(staged.numpy(), arrays)
        self._memory[8 * self.ahead : 8 * self.ahead + layout.size].copy_(staged, non_blocking=True)

    def spoil(self) -> None:
        """Poison what a step must bring or leave itself."""
        fill_poison(self._memory[8 * self.ahead :])
        fill_poison(self._results)

    def results(self, rows: int) -> dict[str, torch.Tensor]:
        """Where a step of so many rows leaves what it drew."""
        return split(self._results, rows)

    def bring(self, rows: int) -> torch.Tensor:
        """A copy of the results on the host, as soon as the device has come to it."""
        import torch

        home = torch.empty(16 * rows, dtype=torch.uint8, pin_memory=self._device != "cpu")
        return home.copy_(self._results[: 16 * rows], non_blocking=True)


def split(block: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
    """The results' arrays in their block."""
    long, single = torch_dtype("int64", ""), torch_dtype("fp32", "")
    return {
        "tokens": block[: 8 * rows].view(long),
        "logprobs": block[8 * rows : 12 * rows].view(single),
        "sums": block[12 * rows : 16 * rows].view(single),
    }
