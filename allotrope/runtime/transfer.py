"""Weights on their way to a GPU: threads copy pieces of the mapped files into pinned memory, and on from there.

    file, mapped   | piece | piece | piece | …        whoever is free takes the next one
    pinned         [ a ][ b ] per thread              a is filled while b is on its way

A copy straight from a mapping would wait for each page; one thread fills less than half of what the bus takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from allotrope.runtime.buffers import allocate, torch_dtype

if TYPE_CHECKING:
    import torch

_THREADS = 8
_PIECE = 8 << 20  # bytes
Raw = npt.NDArray[Any]
Piece = tuple[npt.NDArray[np.uint8], "torch.Tensor"]  # from and to, bytes


def to_gpu(arrays: Mapping[str, tuple[Raw, str]], device: str) -> dict[str, torch.Tensor]:
    """A copy of each array on the GPU, as a tensor of the dtype that its tag names."""
    import torch

    found = {
        name: allocate("the weights", raw.shape, torch_dtype(tag, ""), device, poison=False)
        for name, (raw, tag) in arrays.items()
    }
    pieces, lock = _pieces(arrays, found), threading.Lock()

    def work(_: int) -> None:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        pinned = [torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        sent: list[Any] = [torch.cuda.Event() for _ in pinned]  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream), torch.inference_mode():
            for half, event in cycle(zip(pinned, sent, strict=True)):
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    break
                source, target = piece
                event.synchronize()
                np.copyto(half.numpy()[: len(source)], source)
                target.copy_(half[: len(source)], non_blocking=True)
                event.record()
        stream.synchronize()

    torch.cuda.current_stream().synchronize()  # whoever held this memory before has done with it
    from concurrent.futures import ThreadPoolExecutor  # a megabyte that a CPU has no use for

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work, range(_THREADS)))  # raises what a thread raised
    return found


def _pieces(arrays: Mapping[str, tuple[Raw, str]], targets: Mapping[str, torch.Tensor]) -> Iterator[Piece]:
    import torch

    for name, (raw, _) in arrays.items():
        source, target = raw.reshape(-1).view(np.uint8), targets[name].view(-1).view(torch.uint8)
        for start in range(0, len(source), _PIECE):
            yield source[start : start + _PIECE], target[start : start + _PIECE]
