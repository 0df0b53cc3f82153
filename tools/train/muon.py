"""Muon (Jordan and others, 2024): momentum made orthogonal, for the matrices inside the blocks.

torch has it too, one matrix after another; here matrices of one shape go through the iteration together, because
a small model has many small ones and the launches would take longer than the arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)  # pushes singular values from (0, 1] to around 1 in five rounds
ROUNDS = 5
RMS = 0.2  # of an update's entries at rate 1: about what AdamW's have, so both take rates of one scale


def orthogonal(stack: torch.Tensor) -> torch.Tensor:
    """Each matrix of a stack [n, rows, columns] with its singular values moved close to 1."""
    a, b, c = QUINTIC
    tall = stack.shape[1] > stack.shape[2]
    x = stack.bfloat16() if stack.is_cuda else stack.float()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    found: torch.Tensor = x.mT if tall else x
    return found.to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, decay: float = 0.1) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                momenta = [self._momentum(matrix) for matrix in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
                scale = RMS * max(shape) ** 0.5
                updates = list(orthogonal(torch.stack(ahead)).unbind())
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(matrices, updates, alpha=-group["lr"] * scale)

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: torch.Tensor = state["momentum"]
        return momentum
