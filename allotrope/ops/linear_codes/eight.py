"""Codes times codes: x becomes eight bits a value, the products are summed, and the scales come last.

    sums of codes, rounded to fp32 · scale of x's row · scale of the weight's row + bias, rounded to the compute dtype

each step in fp32, in this order. Where the sums are exact, nothing but the row and the weight is left to decide a bit:
those tactics are one row class, and they give the same bits on every device. Rows go some at a time, through

    [ codes of x ][ scales of x ][ sums ][ sums in fp32, scaled ][ what the product needs ]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.codes import steps_into
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.linear_codes.decoded import take
from allotrope.ops.linear_codes.shape import activations, aligned, unfit
from allotrope.ops.rows import CODE_DTYPES, quantise_into

_BLOCK = 2**22  # sums, or codes of x, at a time
_MULTIPLE = 32  # of rows at a time: cuBLAS asks for more than 16 and for multiples of 8
_DECODED = 2**20  # weight codes widened to fp64 at a time
_INTS = 2**31 // (128 * 127)  # products of codes whose sum int32 holds
_DOUBLES = 2**53 // (2**18 * 448 * 448)  # and of e4m3 codes, multiples of 2⁻⁹, whose sum fp64 holds exactly


class Product(Protocol):
    """Sums of products of codes."""

    @property
    def sums(self) -> torch.dtype:
        """What holds them."""
        ...

    @property
    def exact(self) -> bool:
        """Whether they are, in whatever order they are taken."""
        ...

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Why it cannot serve, as a sentence."""
        ...

    def room(self, rows: int, problem: Problem) -> int:
        """Bytes that it needs for so many rows of x."""
        ...

    def run(self, sums: Tensor, codes: Tensor, weight: Tensor, room: Tensor) -> None:
        """sums [rows, out] = codes [rows, in] · weightᵀ, with the weight's codes as they are stored."""
        ...


@dataclass(frozen=True)
class EightBit:
    """One product, over `tile` rows at a time, or over as many as are worth it."""

    name: str
    product: Product
    tile: int | None = None
    op: str = "linear_codes"
    version: int = 1
    capturable: bool = True

    @property
    def rows_of_a_tile(self) -> int:
        """See `granule`."""
        return self.tile or 1

    def packings(self) -> Mapping[str, str]:
        """All operands as they are stored."""
        return dict.fromkeys(("codes", "scales", "zeros", "bias"), "rows")

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """What fits no tactic; weights that are not 8 bits with a scale per row; what the product says."""
        form, rows = str(problem.params["format"]), activations(problem)
        complaint = unfit(problem)
        if complaint is not None:
            return complaint
        if rows == "none":
            return "it multiplies codes, and these activations are to stay wide"
        if form != rows or problem.axes["groups"] > 1:
            return "it multiplies codes of 8 bits, and takes weights with one scale per row"
        return self.product.why_not(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """One for all whose sums are exact; for another product its own, where it always has as many rows."""
        if self.product.exact:
            return "exact"
        return self.name if self.tile else None

    def workspace(self, problem: Problem, device: Device) -> int:
        """What this module's head shows."""
        into, out = problem.axes["in"], problem.axes["out"]
        rows = self._step(problem.axes["rows"], into, out, device.kind)
        sums = aligned(rows * out * self.product.sums.itemsize) + aligned(rows * out * 4)
        return aligned(rows * into) + aligned(rows * 4) + sums + self.product.room(rows, problem)

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """Some rows at a time: quantise, multiply, scale."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x, target, weight, form = ins["x"], out["out"], ins["codes"], str(params["activations"])
        rows = self._step(len(x), x.shape[1], target.shape[1], "cpu" if x.device.type == "cpu" else "cuda")
        codes, room = take(workspace, CODE_DTYPES[form], rows, x.shape[1])
        scales, room = take(room, torch.float32, rows, 1)
        sums, room = take(room, self.product.sums, rows, target.shape[1])
        scaled, room = take(room, torch.float32, rows, target.shape[1])
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            quantise_into(codes[: len(part)], scales[: len(part)], part, form)
            codes[len(part) :].view(torch.int8).zero_()
            self.product.run(sums, codes, weight.view(CODE_DTYPES[form]), room)
            found = scaled[: len(part)].copy_(sums[: len(part)])
            found.mul_(scales[: len(part)]).mul_(ins["scales"].view(1, -1))
            if "bias" in ins:
                found.add_(ins["bias"])
            target[start : start + rows].copy_(found)

    def _step(self, rows: int, into: int, out: int, kind: str) -> int:
        """How many rows are computed at a time; fewer are filled up."""
        multiple = 1 if kind == "cpu" else _MULTIPLE
        most = max(1, _BLOCK // max(into, out) // _MULTIPLE) * _MULTIPLE
        return self.tile or min(most, -(-rows // multiple) * multiple)


@dataclass(frozen=True)
class _Doubles:
    """Codes widened to fp64, whose sums hold every bit: right everywhere."""

    sums: torch.dtype = torch.float64
    exact: bool = True

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Sums too long to be exact."""
        return _too_long(problem, _DOUBLES)

    def room(self, rows: int, problem: Problem) -> int:
        """x, and as many rows of the weight as are widened at a time."""
        into, out = problem.axes["in"], problem.axes["out"]
        return aligned(8 * rows * into) + aligned(8 * min(out, self._step(into)) * into)

    def run(self, sums: Tensor, codes: Tensor, weight: Tensor, room: Tensor) -> None:
        """Some rows of the weight at a time."""
        (out, into), step = weight.shape, self._step(weight.shape[1])
        form = "fp8" if weight.dtype.is_floating_point else "int8"
        x, room = take(room, torch.float64, len(codes), into)
        wide, _ = take(room, torch.float64, min(out, step), into)
        steps_into(x, codes.view(torch.uint8), form)
        for start in range(0, out, step):
            part = weight[start : start + step]
            steps_into(wide[: len(part)], part.view(torch.uint8), form)
            torch.mm(x, wide[: len(part)].t(), out=sums[:, start : start + step])
        sums.add_(0.0)  # of −0 and 0, which may follow the order of the sums, always 0

    def _step(self, into: int) -> int:
        return max(1, _DECODED // into)


@dataclass(frozen=True)
class _Ints:
    """torch's product of int8 matrices: the CPU's dot products of bytes, the GPU's tensor cores."""

    sums: torch.dtype = torch.int32
    exact: bool = True

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Where a library has none, or one that is not exact."""
        into, out = problem.axes["in"], problem.axes["out"]
        if activations(problem) != "int8":
            return "it multiplies int8 codes, and these are e4m3"
        if device.kind == "cuda" and (into % 8 or out % 8):
            return f"a GPU's product of int8 matrices takes multiples of 8; these are {into} and {out}"
        if device.kind == "cpu" and not {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"} & set(device.features):
            return "this CPU has no dot product of bytes that is exact: sums of two products would saturate"
        if into < 2:
            return "torch takes the only column of a weight for a row"
        return _too_long(problem, _INTS)

    def room(self, rows: int, problem: Problem) -> int:
        """None."""
        return 0

    def run(self, sums: Tensor, codes: Tensor, weight: Tensor, room: Tensor) -> None:
        """In one call."""
        torch._int_mm(codes, weight.t(), out=sums)


@dataclass(frozen=True)
class _Scaled:
    """torch's product of fp8 matrices on a GPU's tensor cores, its scales left at one.

    The cores keep fewer bits of a sum than fp32 does; every 128 products they add up in fp32.
    """

    sums: torch.dtype = torch.float32
    exact: bool = False

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """What tensor cores do not do."""
        into, out = problem.axes["in"], problem.axes["out"]
        if activations(problem) != "fp8":
            return "it multiplies e4m3 codes, and these are int8"
        if device.kind != "cuda" or int(device.arch.rpartition("_")[2] or 0) < 89:
            return "it needs a GPU whose tensor cores know fp8 (sm_89 and later)"
        if problem.dtype == "fp32":
            return "tensor cores sum products of fp8 in fewer bits than fp32 asks for"
        if into % 16 or out % 16:
            return f"it takes multiples of 16; these are {into} and {out}"
        return None

    def room(self, rows: int, problem: Problem) -> int:
        """The scale that is one."""
        return aligned(4)

    def run(self, sums: Tensor, codes: Tensor, weight: Tensor, room: Tensor) -> None:
        """In one call."""
        one = take(room, torch.float32, 1, 1)[0].fill_(1.0)
        torch._scaled_mm(codes, weight.t(), one, one, out_dtype=torch.float32, out=sums)


def _too_long(problem: Problem, most: int) -> str | None:
    into = problem.axes["in"]
    return f"its sums are exact up to {most} inputs, and these are {into}" if into > most else None


EXACT, INT_MM, SCALED_MM = _Doubles(), _Ints(), _Scaled()
