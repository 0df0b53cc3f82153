"""What rounding the weights costs: int8 per output channel and int4 in groups of 32, to nearest, simulated in torch.

Only the blocks' matrices are rounded; norms stay, and the embedding with the head that is tied to it is a case of its
own, since its rows are looked up and not only multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

GROUP = 32
Rounding = Callable[[torch.Tensor], torch.Tensor]


def int8_channel(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] rounded to 255 levels around zero; one scale per output channel."""
    return _symmetric(weight, 127)


def int4_group(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] rounded to 15 levels around zero; one scale per 32 neighbours of a row."""
    return _symmetric(grouped(weight), 7).view_as(weight)


def int4_group_offset(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] rounded to 16 levels from a group's least to its greatest value (zero always among them)."""
    groups = grouped(weight)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).clamp(min=torch.finfo(weight.dtype).tiny)
    zero = (-low / scale).round()
    return (((groups / scale).round() + zero).clamp(0, 15) - zero).mul(scale).view_as(weight)


FORMATS: dict[str, Rounding] = {
    "int8 per channel": int8_channel,
    "int4 groups of 32": int4_group,
    "int4 groups of 32, with offset": int4_group_offset,
}


@contextmanager
def rounded(network: Any, rounding: Rounding, *, embedding: bool = False) -> Iterator[int]:
    """Inside, the network computes with rounded matrices; gives how many weights those are."""
    kept = [(weight, weight.detach().clone(), flip) for weight, flip in matrices(network, embedding=embedding)]
    try:
        with torch.no_grad():
            for weight, exact, flip in kept:
                weight.copy_(rounding(exact.T.contiguous()).T if flip else rounding(exact))
        yield sum(exact.numel() for _, exact, _ in kept)
    finally:
        with torch.no_grad():
            for weight, exact, _ in kept:
                weight.copy_(exact)


def matrices(network: Any, *, embedding: bool = False) -> list[tuple[torch.Tensor, bool]]:
    """(matrix, whether it lies [in, out] as GPT-2's do) for every matrix of the blocks, and the table if asked."""
    table, head = network.get_input_embeddings(), network.get_output_embeddings()
    found = []
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or module is head or isinstance(module, torch.nn.Embedding):
            continue
        found.append((weight, type(module).__name__ == "Conv1D"))
    if embedding:
        outer = {id(weight): weight for weight in (table.weight, head.weight)}  # tied ones are one
        found += [(weight, False) for weight in outer.values()]
    return found


def grouped(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] as [out, groups, 32]."""
    if weight.shape[-1] % GROUP:
        raise ValueError(f"rows of {weight.shape[-1]} weights do not divide into groups of {GROUP}")
    return weight.reshape(weight.shape[0], -1, GROUP)


def _symmetric(values: torch.Tensor, top: int) -> torch.Tensor:
    scale = (values.abs().amax(-1, keepdim=True) / top).clamp(min=torch.finfo(values.dtype).tiny)
    return (values / scale).round().clamp(-top, top) * scale
