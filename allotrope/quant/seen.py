"""What a group of layers is seen to read: the wide model's inputs and the narrow one's, side by side.

The layer is to give with the narrow inputs what it gave with the wide ones. Over all tokens that is answered by two
sums of products: with G = Σ n·nᵀ and D = Σ (w − n)·nᵀ of the narrow inputs n and the wide ones w, the weight that does
it best is W + W·D·G⁻¹, and whatever stands for it errs by what stands between the two, weighed by G.
"""

from __future__ import annotations

import torch

from allotrope.errors import NumericalError
from allotrope.quant.gptq import Hessian

_SAMPLE = 512  # inputs that are kept themselves, for what cannot be read from sums
_DAMPING = 0.01  # of G's mean diagonal


class Seen:
    """Sums over pairs of inputs, [rows, width] each, batch by batch."""

    def __init__(self, width: int, path: str, device: torch.device | str) -> None:
        self.gram = Hessian(width, path, device=device)
        self._drift = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._loudness = torch.zeros(width, dtype=torch.float64, device=device)
        self._samples: list[torch.Tensor] = []
        self.peaks = torch.zeros(width, device=device)

    def add(self, wide: torch.Tensor, narrow: torch.Tensor) -> None:
        """One batch; NaN and infinity are refused."""
        if not bool(wide.isfinite().all()):
            remedy = "check the checkpoint with --allow-nan, or take --method nearest"
            raise NumericalError("its inputs hold NaN or infinity", where=self.gram.path, remedy=remedy)
        self.gram.add(narrow)
        rows = narrow.double()
        self._drift.addmm_((wide - narrow).double().T, rows)
        self._loudness += rows.abs().sum(0)
        self.peaks = torch.maximum(self.peaks, narrow.abs().amax(0))
        self._samples.append(narrow[:: max(1, len(narrow) // 64)].clone())

    @property
    def loudness(self) -> torch.Tensor:
        """Mean magnitude of each channel."""
        return self._loudness / max(1, self.gram.count)

    def sample(self) -> torch.Tensor:
        """Some of the narrow inputs, from all batches alike."""
        rows = torch.cat(self._samples)
        return rows[:: max(1, len(rows) // _SAMPLE)]

    def aimed(self, weights: torch.Tensor, share: float) -> torch.Tensor:
        """The weights [out, in] that answer for `share` of what the narrow inputs lack of the wide ones."""
        if not share:
            return weights
        damped = self.gram.matrix.clone()
        damped.diagonal().add_(_DAMPING * damped.diagonal().mean() + torch.finfo(torch.float64).tiny)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return weights
        moved = torch.cholesky_solve((weights.double() @ self._drift).T, lower).T
        return (weights.double() + share * moved).float()

    def scaled(self, scales: torch.Tensor) -> Hessian:
        """G of the inputs divided by `scales`."""
        found = Hessian(len(scales), self.gram.path, device=scales.device)
        wide = scales.double()
        found.matrix, found.count = self.gram.matrix / wide / wide[:, None], self.gram.count
        return found


def error(gram: torch.Tensor, difference: torch.Tensor) -> float:
    """Σ |E·n|² over all inputs, of a difference E [out, in]."""
    wide = difference.double()
    return float(((wide @ gram) * wide).sum())


def moments(gram: torch.Tensor, groups: int) -> torch.Tensor:
    """[groups, group, group]: the blocks of G along its diagonal."""
    size = len(gram) // groups
    return gram.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
