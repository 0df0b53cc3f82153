"""Torch's activations writing into given memory, whole and in pieces that make their bits a row's own.

On a CPU torch computes most elements with vector code and the end of each thread's share with scalar
code, and for gelu and silu the two differ in the last bit. Where a share ends depends on how many rows
there are. (For dense tensors it may also hand gelu to another library, whose bits differ again.) So a piece
is small enough that one thread takes it whole (32768 elements), it is dense, and its rows are whole
vectors; rows that are not so are staged. Then every element meets the same vector code, which treats all
of its lanes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import ELEMENT_BYTES, Problem

PIECE = 32768  # torch's grain: up to this many elements go to one thread
LANES = 64  # two vectors of the narrowest float on the widest machine: torch's step through a row

ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "gelu": torch.ops.aten.gelu.out,
    "gelu_tanh": partial(torch.ops.aten.gelu.out, approximate="tanh"),
    "relu": torch.ops.aten.relu.out,
    "silu": torch.ops.aten.silu.out,
}


def unknown(problem: Problem) -> str | None:
    """A sentence if the problem's kind is none of these."""
    kind = problem.params.get("kind")
    return None if kind in ACTIVATIONS else f"there is no activation {kind!r}, only {', '.join(sorted(ACTIVATIONS))}"


def whole_mixes(problem: Problem, device: Device) -> str | None:
    """Why torch's own function over all rows at once has no row class."""
    if device.kind != "cpu" or problem.params.get("kind") == "relu":
        return None  # one function per element on CUDA; relu is the same in vector and scalar code
    return "torch's vector and scalar code differ, and the rows decide which element gets which"


def pieces_refuse(problem: Problem, device: Device) -> str | None:
    """Where computing in pieces is of no use."""
    if device.kind != "cpu" or problem.params.get("kind") == "relu":
        return unknown(problem) or "torch's function over all rows at once has a row class here"
    return unknown(problem)


def staging_bytes(problem: Problem, device: Device) -> int:
    """Room for one piece."""
    return PIECE * ELEMENT_BYTES[problem.dtype]


def whole(kind: str, x: Tensor, out: Tensor) -> None:
    """All rows at once."""
    ACTIVATIONS[kind](x, out=out)


def in_pieces(kind: str, x: Tensor, out: Tensor, workspace: Tensor | None) -> None:
    """Piece by piece; `workspace` holds at least `staging_bytes`."""
    if workspace is None:
        raise ValueError("computing in pieces needs its workspace")
    function, (rows, width) = ACTIVATIONS[kind], x.shape
    for column in range(0, width, PIECE):
        columns = slice(column, min(column + PIECE, width))
        used = columns.stop - column
        padded = -(-used // LANES) * LANES
        for row in range(0, rows, PIECE // padded):
            here = slice(row, min(row + PIECE // padded, rows))
            source, target = x[here, columns], out[here, columns]
            size = (here.stop - row) * padded * x.element_size()
            staged = workspace[:size].view(x.dtype).view(-1, padded)
            if used < padded or not source.is_contiguous():
                staged[:, :used].copy_(source)
                staged[:, used:].zero_()
                source = staged
            if used < padded or not target.is_contiguous():
                function(source, out=staged)
                target.copy_(staged[:, :used])
            else:
                function(source, out=target)
