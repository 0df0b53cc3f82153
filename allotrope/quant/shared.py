"""Linears that read the same input: what AWQ and SmoothQuant balance together.

Both multiply the input's channels by 1/s, folded into the op before, and the weights' columns by s, which changes
nothing but where rounding falls. One input, so one s for all that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from allotrope.errors import NumericalError, UsageError

_WIDEST = 1e4  # no channel is scaled further up or down than this: 16-bit norms must hold what is folded into them


@dataclass(frozen=True, eq=False)
class Shared:
    """Weights [out, in] by path, and a sample [rows, in] of the input that all of them read, on one device."""

    weights: Mapping[str, torch.Tensor]
    inputs: torch.Tensor

    def __post_init__(self) -> None:
        if not self.weights:
            raise UsageError("no weights are given to be scaled")
        name = ", ".join(self.weights)
        if self.inputs.dim() != 2 or not self.inputs.numel():
            problem = f"the sample of inputs is {tuple(self.inputs.shape)}; it must be [rows, in], and not empty"
            raise UsageError(problem, where=name, remedy="give a longer calibration text")
        for path, weight in self.weights.items():
            if weight.dim() != 2 or weight.shape[1] != self.width:
                problem = f"its shape is {tuple(weight.shape)}; the inputs are {self.width} wide"
                raise UsageError(problem, where=path)
        if not bool(self.inputs.isfinite().all()):
            raise NumericalError("the inputs hold NaN or infinity", where=name, remedy="calibrate in a wider dtype")

    @property
    def width(self) -> int:
        """Of the input."""
        return self.inputs.shape[1]

    def error(self, scales: torch.Tensor, outputs: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """How far `outputs(path, inputs / scales, weight · scales)` are from the truth, relative to it, in RMS."""
        wrong, right = 0.0, 0.0
        inputs = self.inputs.float()
        for path, weight in self.weights.items():
            exact = inputs @ weight.float().T
            found = outputs(path, inputs / scales, weight.float() * scales)
            wrong += float((found - exact).double().square().sum())
            right += float(exact.double().square().sum())
        return float((wrong / right) ** 0.5) if right else 0.0


def tidy(wanted: torch.Tensor) -> torch.Tensor:
    """Scales [in] fp32 as they may be folded: around 1, within bounds, and 1 where nothing is known (0, NaN, infinity).

    They keep eight significant bits, so that a 16-bit weight times its scale is exact in fp32.
    """
    known = wanted.isfinite() & (wanted > 0)
    live = wanted[known].double()
    if not live.numel():
        return torch.ones_like(wanted, dtype=torch.float32)
    middle = (live.max() * live.min()).sqrt()
    centred = torch.where(known, wanted.double() / middle, 1.0).clamp(1 / _WIDEST, _WIDEST)
    return centred.bfloat16().float()
