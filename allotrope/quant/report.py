"""What rounding did to a weight: the figures that are shown, one row per weight, and their total."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from allotrope.errors import UsageError
from allotrope.quant.formats import Format, Quantised, Store, dequantise
from allotrope.quant.rounding import blocks_of_rows

OUTLIER = 6.0  # times the median column's largest magnitude: what stands out this far sets its group's step


@dataclass(frozen=True)
class WeightError:
    """One weight's error. `signal` and `noise` are sums of squares, of the weight and of its error.

    `outliers` are the columns (input channels) whose largest magnitude exceeds OUTLIER times the median of all.
    """

    path: str
    format: str
    weights: int
    nbytes: int
    signal: float
    noise: float
    cosine: float
    max_abs: float
    outliers: tuple[int, ...]

    @property
    def relative(self) -> float:
        """The error's norm over the weight's; of a weight that is all zero, infinite unless exact."""
        return _relative(self.signal, self.noise)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise, in decibels; None where there is no noise."""
        return _decibels(self.signal, self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "outliers": list(self.outliers), **_figures(self.signal, self.noise)}


@dataclass(frozen=True)
class TotalError:
    """All weights taken as one."""

    weights: int
    nbytes: int
    signal: float
    noise: float

    @property
    def bits_per_weight(self) -> float:
        """Scales and zeros counted."""
        return 8 * self.nbytes / self.weights

    @property
    def relative(self) -> float:
        """The error's norm over the weights'."""
        return _relative(self.signal, self.noise)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise, in decibels; None where there is no noise."""
        return _decibels(self.signal, self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "bits_per_weight": self.bits_per_weight, **_figures(self.signal, self.noise)}


def measure(path: str, weight: torch.Tensor, quantised: Quantised) -> WeightError:
    """The error of what stands in for a weight [out, in], in fp64, a few rows at a time."""
    if tuple(weight.shape) != quantised.shape:
        raise UsageError(f"its shape is {tuple(weight.shape)}; what stands for it is {quantised.shape}", where=path)

    def stands(start: int, count: int) -> torch.Tensor:
        return dequantise(_rows(quantised, start, count), torch.float64)

    return _measured(path, weight, stands, quantised.format)


def measure_store(path: str, weight: torch.Tensor, stored: torch.Tensor, store: Store) -> WeightError:
    """The error of a weight [out, in] kept in 16 bits."""
    return _measured(path, weight, lambda start, count: stored[start : start + count].double(), store)


def _measured(
    path: str, weight: torch.Tensor, stands: Callable[[int, int], torch.Tensor], form: Format | Store
) -> WeightError:
    """`stands(start, count)` gives rows of what stands for the weight, in fp64."""
    signal = noise = together = again = worst = 0.0
    peaks = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    start = 0
    for rows in blocks_of_rows(weight):
        right, found = rows.double(), stands(start, len(rows))
        error = found - right
        signal += float(right.square().sum())
        noise += float(error.square().sum())
        together += float((right * found).sum())
        again += float(found.square().sum())
        worst = max(worst, float(error.abs().max()))
        peaks = torch.maximum(peaks, right.abs().amax(0))
        start += len(rows)
    length = math.sqrt(signal) * math.sqrt(again)
    cosine = together / length if length else float(signal == again)
    return WeightError(
        path=path,
        format=str(form),
        weights=weight.numel(),
        nbytes=form.nbytes(weight.shape),
        signal=signal,
        noise=noise,
        cosine=min(1.0, cosine),
        max_abs=worst,
        outliers=outliers(peaks),
    )


def outliers(peaks: torch.Tensor) -> tuple[int, ...]:
    """The channels that stand out, given each one's largest magnitude; channels that are all zero count for nothing."""
    live = peaks[peaks > 0]
    if not live.numel():
        return ()
    return tuple((peaks > OUTLIER * live.median()).nonzero().flatten().tolist())


def total(errors: Sequence[WeightError]) -> TotalError:
    """The sum over weights, at least one."""
    if not errors:
        raise UsageError("no weight was quantised, so there is no error to add up")
    return TotalError(
        sum(error.weights for error in errors),
        sum(error.nbytes for error in errors),
        math.fsum(error.signal for error in errors),
        math.fsum(error.noise for error in errors),
    )


def _rows(whole: Quantised, start: int, count: int) -> Quantised:
    here = slice(start, start + count)
    return Quantised(
        whole.format, whole.codes[here], whole.scales[here], None if whole.zeros is None else whole.zeros[here]
    )


def _relative(signal: float, noise: float) -> float:
    if not signal:
        return math.inf if noise else 0.0
    return math.sqrt(noise / signal)


def _decibels(signal: float, noise: float) -> float | None:
    if not noise:
        return None
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _figures(signal: float, noise: float) -> dict[str, float | None]:
    """Infinities become None: JSON has no word for them."""
    found = {"relative": _relative(signal, noise), "sqnr_db": _decibels(signal, noise)}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}
