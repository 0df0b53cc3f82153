"""Linear layers with torch's matrix product: over all rows at once, and in tiles of a fixed number of rows.

A library picks its kernel by the number of rows, so that a row's bits change with its company. A tile
always has the same shape, strides and alignment, so it always meets the same kernel, and that kernel
treats a tile's rows alike (`check_rows` proves it, here and in the builder). A workspace holds

    [ rows in: R × in ][ rows out: R × out ]   and for narrow outputs   [ weight: 16 × in ][ bias: 16 ]

On CUDA in fp32, products are exact fp32 as long as nobody has allowed TF32 in torch; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import ELEMENT_BYTES, Problem, Scalar
from allotrope.ops.functional import FunctionTactic

LINE = 64  # bytes: what workspaces and buffers are aligned to
NARROW = 16  # MKL has kernels for fewer than twelve outputs in which a row's place in the tile matters

FEW = 4  # rows from which on MKL's product with a transposed weight is a real matrix product


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x · weight + bias, with weight as [in, out]."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


def _whole_rows(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _product(ins["x"], ins["weight"].t(), ins.get("bias"), out["out"])


def _whole_cols(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    _product(ins["x"], ins["weight"], ins.get("bias"), out["out"])


def _inaccurate(problem: Problem, device: Device) -> str | None:
    if device.kind == "cpu" and problem.dtype == "fp32" and problem.axes["rows"] < FEW:
        return f"for fewer than {FEW} rows MKL sums this layout term by term, with more error than the policy allows"
    return None


def _library(problem: Problem, device: Device) -> str:
    return "a library's matrix product changes a row's bits with the number of rows"


class _Scratch:
    """Hands out aligned pieces of a workspace, in order."""

    def __init__(self, workspace: Tensor, dtype: torch.dtype) -> None:
        self._workspace, self._dtype, self._used = workspace, dtype, 0

    def take(self, rows: int, width: int) -> Tensor:
        """An uninitialised matrix."""
        size = rows * width * self._dtype.itemsize
        piece = self._workspace[self._used : self._used + size].view(self._dtype).view(rows, width)
        self._used += aligned(size)
        return piece


def aligned(size: int) -> int:
    """`size` up to where the workspace's next part may begin."""
    return -(-size // LINE) * LINE


def _placed_alike(tile: Tensor) -> bool:
    """Whether a tile lies in memory as it would in the workspace."""
    return tile.is_contiguous() and tile.data_ptr() % LINE == 0


_AMX_ROWS = 16  # of a tile register


@dataclass(frozen=True)
class Tiles:
    """The product in tiles of `rows` rows; the last one is filled up."""

    rows: int
    packing: str  # "rows" or "cols"
    op: str = "linear"
    version: int = 1
    capturable: bool = True

    @property
    def name(self) -> str:
        """`torch_tile16`, `torch_tile16_cols`."""
        return f"torch_tile{self.rows}" + ("_cols" if self.packing == "cols" else "")

    @property
    def rows_of_a_tile(self) -> int:
        """See `granule`."""
        return self.rows

    def packings(self) -> Mapping[str, str]:
        """The weight's; a bias has only one."""
        return {"weight": self.packing, "bias": "rows"}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """It serves every shape on every device."""
        return None

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its own: no other tile size and no other packing gives the same bits. None where AMX multiplies large tiles:
        there a row's bits have been seen to change with its company."""
        spoilt = (
            problem.dtype == "bf16" and self.rows > _AMX_ROWS and device.kind == "cpu" and "amx_bf16" in device.features
        )
        return None if spoilt else self.name

    def workspace(self, problem: Problem, device: Device) -> int:
        """A tile in, a tile out, and a narrow weight filled up."""
        into, out, size = problem.axes["in"], problem.axes["out"], ELEMENT_BYTES[problem.dtype]
        total = aligned(self.rows * into * size) + aligned(self.rows * max(out, NARROW) * size)
        return total + (aligned(NARROW * into * size) + aligned(NARROW * size) if out < NARROW else 0)

    def run(
        self,
        out: Mapping[str, Tensor],
        ins: Mapping[str, Tensor],
        params: Mapping[str, Scalar],
        workspace: Tensor | None,
    ) -> None:
        """Tile by tile; a tile that already lies as it would in the workspace is not copied."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x, target, bias = ins["x"], out["out"], ins.get("bias")
        width = target.shape[1]
        scratch = _Scratch(workspace, x.dtype)
        tile_in, tile_out = scratch.take(self.rows, x.shape[1]), scratch.take(self.rows, max(width, NARROW))
        weight = ins["weight"] if self.packing == "cols" else ins["weight"].t()
        if width < NARROW:
            weight, bias = _widened(weight, bias, scratch)
        for start in range(0, len(x), self.rows):
            count = min(self.rows, len(x) - start)
            rows, into = x[start : start + count], target[start : start + count]
            if count < self.rows or not _placed_alike(rows):
                tile_in[:count].copy_(rows)
                tile_in[count:].zero_()  # whatever lay there could be slow (denormals), though not wrong
                rows = tile_in
            if count < self.rows or width < NARROW or not _placed_alike(into):
                _product(rows, weight, bias, tile_out)
                into.copy_(tile_out[:count, :width])
            else:
                _product(rows, weight, bias, into)


def _widened(weight: Tensor, bias: Tensor | None, scratch: _Scratch) -> tuple[Tensor, Tensor | None]:
    """[in, out] with zero columns up to the narrowest that has a row class, and the bias likewise."""
    into, width = weight.shape
    wide = scratch.take(NARROW, into)
    wide[:width].copy_(weight.t())
    wide[width:].zero_()
    if bias is None:
        return wide.t(), None
    filled = scratch.take(1, NARROW)[0]
    filled[:width].copy_(bias)
    filled[width:].zero_()
    return wide.t(), filled


@dataclass(frozen=True)
class Flipped:
    """The product turned round: weight · xᵀ, then laid down in rows. For fp32 with MKL.

    There the few rows are the columns of the result, for which MKL has kernels that read the weight at
    nearly full bandwidth; with the rows as rows it computes as if there were many more. Its kernels for
    4 to 8 columns sum in one order, those for 12 and more in another, and within each the bits do not
    depend on the number. So there are two classes: tiles of four, and everything at once from `least` up.
    """

    name: str
    least: int  # columns of a product; fewer rows are filled up
    most: int | None  # columns of a product; None: all there are
    op: str = "linear"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """Weights as the checkpoint has them."""
        return {"weight": "rows", "bias": "rows"}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """It is a way with MKL's fp32 kernels."""
        if device.kind != "cpu" or problem.dtype != "fp32":
            return "turning the product round helps MKL's fp32 kernels on a CPU alone"
        if problem.axes["out"] < NARROW:
            return f"for fewer than {NARROW} outputs a row's bits depend on its place"
        return None

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its own name: the number of columns picks no other kernel within its bounds."""
        return self.name

    def workspace(self, problem: Problem, device: Device) -> int:
        """The rows, filled up, and the result before it is laid down."""
        columns = max(self.least, min(problem.axes["rows"], self.most or problem.axes["rows"]))
        return aligned(4 * columns * problem.axes["in"]) + aligned(4 * columns * problem.axes["out"])

    def run(
        self,
        out: Mapping[str, Tensor],
        ins: Mapping[str, Tensor],
        params: Mapping[str, Scalar],
        workspace: Tensor | None,
    ) -> None:
        """Product by product, each laid down and, with a bias, added to."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x, weight, target, bias = ins["x"], ins["weight"], out["out"], ins.get("bias")
        step = self.most or len(x)
        for start in range(0, len(x), step):
            rows, into = x[start : start + step], target[start : start + step]
            columns = max(self.least, len(rows))
            scratch = _Scratch(workspace, x.dtype)
            given, result = scratch.take(columns, x.shape[1]), scratch.take(target.shape[1], columns)
            given[: len(rows)].copy_(rows)
            given[len(rows) :].zero_()
            torch.mm(weight, given.t(), out=result)
            if bias is None:
                into.copy_(result.t()[: len(rows)])
            else:
                torch.add(result.t()[: len(rows)], bias, out=into)


TACTICS = (
    # A tile's cost on a CPU is bound by its arithmetic from about 16 rows on, and by reading the weight at one.
    Tiles(8, "rows"),
    Flipped("torch_flip4", 4, 4),  # decoding a few rows
    Flipped("torch_flip", 16, None),  # many rows
    Tiles(1, "rows"),
    Tiles(16, "rows"),
    Tiles(32, "rows"),
    Tiles(64, "rows"),
    Tiles(8, "cols"),
    FunctionTactic("linear", "torch_mm", _whole_rows, {"weight": "rows", "bias": "rows"}, rowwise=_library),
    FunctionTactic("linear", "torch_mm_cols", _whole_cols, {"weight": "cols", "bias": "rows"}, _inaccurate, _library),
)
