"""Realistic random inputs for the ops' input makers: what activations and weights of trained models look like."""

from __future__ import annotations

import torch


def generator(seed: int) -> torch.Generator:
    """A fresh generator on the CPU, so that inputs are the same wherever they are used."""
    return torch.Generator().manual_seed(seed)


def normal(random: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Independent normal values in fp64."""
    return torch.randn(*shape, generator=random, dtype=torch.float64) * scale


def activations(random: torch.Generator, rows: int, width: int) -> torch.Tensor:
    """Rows of different size (0.1 to 3), a mean that is not zero, and one channel in a hundred 20 times larger."""
    loud = torch.where(torch.rand(width, generator=random) < 0.01, 20.0, 1.0).double()
    sizes = 10 ** (torch.rand(rows, 1, generator=random, dtype=torch.float64) * 1.5 - 1)
    return (normal(random, rows, width) * loud + 0.1) * sizes


def gains(random: torch.Generator, width: int) -> torch.Tensor:
    """A norm's weight: around one, some small, some negative."""
    return 1 + normal(random, width, scale=0.5)


def indices(random: torch.Generator, count: int, below: int) -> torch.Tensor:
    """Positions or ids; the first and the last possible are among them when there is room."""
    found = torch.randint(0, below, (count,), generator=random)
    found[:2] = torch.tensor([below - 1, 0])[:count]
    return found
