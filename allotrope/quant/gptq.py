"""GPTQ: round one column after the other, and let the columns still to come make up for each error.

With H = Σ x·xᵀ over what a linear reads, moving column i by e is best answered by moving the later columns by
−e · H⁻¹[i, later] / H⁻¹[i, i], where H is that of the columns not yet rounded. All these rows stand in one upper
triangle U with H⁻¹ = Uᵀ·U, so it is factored once (`prepare`), and serves every weight that reads the same input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from allotrope.errors import NumericalError, UsageError
from allotrope.quant.columns import round_columns
from allotrope.quant.formats import Format, Quantised
from allotrope.quant.rounding import check_weight, choose_all, choose_scales

_BLOCK = 128  # columns between two updates of everything behind them, at most
_MORE = (10, 100)  # times the damping asked for, where that leaves H indefinite


class Hessian:
    """Σ x·xᵀ over the inputs that one linear reads, batch by batch; `matrix` is [width, width] in `dtype`."""

    def __init__(
        self, width: int, path: str, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> None:
        self.path, self.count = path, 0
        self.matrix = torch.zeros(width, width, dtype=dtype, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in [..., width] more inputs, on any device."""
        width = self.matrix.shape[0]
        if inputs.shape[-1] != width:
            raise UsageError(f"the inputs are {inputs.shape[-1]} wide; the weight reads {width}", where=self.path)
        rows = inputs.detach().reshape(-1, width).to(self.matrix)
        if not bool(rows.isfinite().all()):
            raise NumericalError(
                "its inputs hold NaN or infinity", where=self.path, remedy="calibrate in a wider dtype"
            )
        self.matrix.addmm_(rows.T, rows)
        self.count += len(rows)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A Hessian ready for use: `upper` is U over the columns in `order`.

    `damping` is the share of H's mean diagonal that was added to it, `dead` how many columns were never fed anything;
    `note` says what had to be done beyond what was asked, or is None.
    """

    path: str
    upper: torch.Tensor
    order: torch.Tensor
    sorted: bool
    damping: float
    dead: int
    note: str | None


def prepare(hessian: Hessian, *, damping: float = 0.01, sort: bool = False) -> Prepared:
    """Damp and factor; `sort` takes the columns with the loudest inputs first (activation order).

    A dead column is rounded to nearest: nothing is known of it, so nothing is to make up for it, and it is not cleared
    as is often done, since what no calibration text woke, another text may.
    """
    if not 0 < damping <= 1:
        raise UsageError(f"damping is {damping}; it must be above 0 and at most 1")
    if hessian.count == 0:
        raise UsageError("no inputs were seen", where=hessian.path, remedy="give a longer calibration text")
    loudness = hessian.matrix.diagonal()
    dead = loudness == 0
    mean = torch.where(dead.all(), 1.0, loudness.mean())
    order = torch.argsort(loudness, descending=True, stable=True) if sort else torch.arange(len(loudness))
    order = order.to(loudness.device)
    damped = hessian.matrix[order][:, order]
    damped.diagonal().add_(dead[order] * mean)
    added = 0.0
    for share in (damping, *(damping * times for times in _MORE if damping * times <= 1)):
        damped.diagonal().add_((share - added) * mean)
        added = share
        upper = _factor(damped)
        if upper is not None:
            note = None if share == damping else f"damping {damping:g} was too little for Cholesky; it took {share:g}"
            return Prepared(hessian.path, upper, order, sort, share, int(dead.sum()), note)
    problem = f"the inputs' products are not positive definite, even with damping {added:g}"
    raise NumericalError(problem, where=hessian.path, remedy="calibrate on more text, or round this weight to nearest")


def gptq(weight: torch.Tensor, prepared: Prepared, form: Format, path: str, *, clip: bool = False) -> Quantised:
    """The weight [out, in] in its format, with as little error of its output as H knows how to reach.

    A group's scales are chosen when its turn comes, of its weights as they stand then; where columns are sorted, a
    group's columns come at any time, so all scales are chosen beforehand. `clip`: by the clipping search. The result
    lies where the Hessian lies.
    """
    check_weight(weight, form, path)
    weight, width = weight.detach().to(prepared.upper.device), weight.shape[1]
    if width != len(prepared.order):
        raise UsageError(f"its width is {width}; its inputs were {len(prepared.order)} wide", where=path)
    upper, order, size = prepared.upper, prepared.order, form.group or width
    late = form.group is not None and not prepared.sorted
    scales, zeros = choose_all(weight, form, path, clip=clip)
    codes = torch.empty(weight.shape, dtype=form.code_dtype, device=weight.device).view(torch.uint8)
    left = weight.to(upper)[:, order]  # as the columns not yet rounded stand by now, in order
    unit = min(size, _BLOCK) if late else _BLOCK
    for start in range(0, width, unit):
        here = slice(start, min(start + unit, width))
        places = order[here]
        if late and start % size == 0:
            new, zero = choose_scales(left[:, start : start + size].double().unsqueeze(1), form, path, clip=clip)
            scales[:, start // size] = new[:, 0]
            if zeros is not None and zero is not None:
                zeros[:, start // size] = zero[:, 0]
        groups = places // size
        zero = None if zeros is None else zeros[:, groups]
        found, errors = round_columns(left[:, here], upper[here, here], scales[:, groups], zero, form)
        codes[:, places] = found
        left[:, here.stop :] -= errors @ upper[here, here.stop :]
    return Quantised(form, codes.view(form.code_dtype), scales, zeros)


def _factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """U with U⁻¹·U⁻ᵀ = the matrix, upper; None where it is not positive definite.

    Read backwards, the matrix is L·Lᵀ; L read backwards is upper, and its inverse is U: no inverse of the matrix itself
    is ever formed.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(failed) or not bool(lower.isfinite().all()):
        return None
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    upper: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return upper
