"""Codes times codes in groups: each group's sum of integers, exact, then its scale; the groups in order.

    total = fma(group's sum rounded to fp32, group's scale, total)     for one group after the other, from zero
    out   = total · scale of x's row + bias, rounded to the compute dtype

A group's sum takes its zero off every code. All steps are fp32's, each rounded once, the fused one included; so these
bits do not depend on the device, on the number of rows, or on how a library sums. This is the plain way, for every
device: the sums and the fused step are computed in fp64, where a sum of codes is exact.

    [ codes of x ][ scales of x ][ a group of x ][ a group of the weight ][ sums ][ totals ]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.codes import unpacked
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.linear_codes.decoded import take
from allotrope.ops.linear_codes.shape import activations, aligned, unfit
from allotrope.ops.rows import CODE_DTYPES, quantise_into

_ROWS = 64  # at a time


@dataclass(frozen=True)
class Grouped:
    """The tactic: right everywhere, fast nowhere."""

    name: str = "torch_groups"
    op: str = "linear_codes"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """All operands as they are stored."""
        return dict.fromkeys(("codes", "scales", "zeros", "bias"), "rows")

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """What fits no tactic, and what has other tactics."""
        complaint = unfit(problem)
        if complaint is not None:
            return complaint
        if activations(problem) != "int8":
            return "it multiplies int8 codes with codes in groups, and these activations are none"
        if problem.params["format"] == "int8" and problem.axes["groups"] == 1:
            return "with one scale per row, sums need no groups"
        return None

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its sums are exact, and what follows is the same for every row."""
        return "exact"

    def workspace(self, problem: Problem, device: Device) -> int:
        """What this module's head shows."""
        rows, into, out = min(_ROWS, problem.axes["rows"]), problem.axes["in"], problem.axes["out"]
        size = into // problem.axes["groups"]
        coded = aligned(rows * into) + aligned(4 * rows)
        return coded + aligned(8 * rows * size) + aligned(8 * out * size) + 2 * aligned(8 * rows * out)

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """Some rows at a time, group by group."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x, target, zeros = ins["x"], out["out"], ins.get("zeros")
        weight = unpacked(ins["codes"], str(params["format"]), zeros is None)
        groups = ins["scales"].shape[1]
        size = x.shape[1] // groups
        most = min(_ROWS, len(x))
        codes, room = take(workspace, CODE_DTYPES["int8"], most, x.shape[1])
        scales, room = take(room, torch.float32, most, 1)
        given, room = take(room, torch.float64, most, size)
        wide, room = take(room, torch.float64, len(weight), size)
        sums, room = take(room, torch.float64, most, len(weight))
        totals, _ = take(room, torch.float64, most, len(weight))
        for start in range(0, len(x), most):
            part = x[start : start + most]
            rows = len(part)
            quantise_into(codes[:rows], scales[:rows], part, "int8")
            totals.zero_()
            for group in range(groups):
                here = slice(group * size, (group + 1) * size)
                given[:rows].copy_(codes[:rows, here])
                wide.copy_(weight[:, here])
                if zeros is not None:
                    wide.sub_(zeros[:, group, None])
                torch.mm(given[:rows], wide.t(), out=sums[:rows])
                step = sums[:rows].float().double() * ins["scales"][:, group].double()
                totals[:rows] = _added(step, totals[:rows]).double()
            found = totals[:rows].float().mul_(scales[:rows])
            if "bias" in ins:
                found.add_(ins["bias"])
            target[start : start + most].copy_(found)


def _added(product: Tensor, total: Tensor) -> Tensor:
    """product + total, rounded once to fp32, for fp64 that holds both exactly.

    fp64's own sum may be rounded, and rounding that again could go the wrong way from a tie. So it is made odd where
    it was rounded: no tie, and on the right side of one.
    """
    near = product + total
    back = near - product
    lost = (product - (near - back)) + (total - back)  # what rounding left out, exactly
    bits = near.view(torch.int64)
    outward = (lost > 0) == (near > 0)
    odd = torch.where(outward, bits + 1, bits - 1).view(torch.float64)
    return torch.where((lost != 0) & (bits & 1 == 0), odd, near).float()


GROUPED = Grouped()
