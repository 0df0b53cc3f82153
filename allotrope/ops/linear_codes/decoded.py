"""The weight decoded into the workspace, some rows at a time, each time followed by one of the linear layer's tactics.

    [ x as its codes mean it ][ decoded rows, fp32 ][ the same in 16 bits, where x is ][ what the linear tactic needs ]

The decoded rows are few enough to lie in a CPU's cache when they are multiplied. How many there are follows from the
weight's shape and the kind of device alone, and what they hold not from the rows of x: so its row class is that of the
linear tactic. Activations in few bits are multiplied as the numbers that their codes mean, in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.codes import decode_into
from allotrope.ops.contract import ELEMENT_BYTES, Array, Problem, Scalar
from allotrope.ops.linear_codes.shape import activations, aligned, plain, unfit
from allotrope.ops.rows import quantise_rows
from allotrope.ops.tactic import Tactic

_ROOM = {"cpu": 2**21, "cuda": 2**24}  # bytes of decoded rows in fp32: about a core's cache; enough for few launches
_LEAST = 64  # rows at a time: a matrix product wants some, and fewer than 16 have no row class
_QUANTISED = 2**20  # activations at a time


@dataclass(frozen=True)
class Decoded:
    """A linear tactic over a weight that is decoded first."""

    inner: Tactic
    op: str = "linear_codes"
    version: int = 2

    @property
    def name(self) -> str:
        """The linear tactic's."""
        return self.inner.name

    @property
    def capturable(self) -> bool:
        """As the linear tactic is: decoding asks nothing of the host."""
        return self.inner.capturable

    @property
    def rows_of_a_tile(self) -> int:
        """See `granule`."""
        return int(getattr(self.inner, "rows_of_a_tile", 1))

    def packings(self) -> Mapping[str, str]:
        """All operands as they are stored."""
        return dict.fromkeys(("codes", "scales", "zeros", "bias"), "rows")

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """What fits no tactic, or what the linear tactic says."""
        return unfit(problem) or self.inner.why_not(self._largest(problem, device), device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """That of the linear tactic."""
        return self.inner.row_class(self._largest(problem, device), device)

    def workspace(self, problem: Problem, device: Device) -> int:
        """What this module's head shows."""
        part, size, into = self._largest(problem, device), ELEMENT_BYTES[problem.dtype], problem.axes["in"]
        values = part.axes["out"] * into
        rows = 0 if activations(problem) == "none" else aligned(problem.axes["rows"] * into * size)
        narrow = aligned(values * size) if size < 4 else 0
        return rows + aligned(values * 4) + narrow + self.inner.workspace(part, device)

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array] | None:
        """Decode some rows, multiply, and so on."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x, codes, form = ins["x"], ins["codes"], str(params["format"])
        scales, zeros, bias, room = ins["scales"], ins.get("zeros"), ins.get("bias"), workspace
        if params["activations"] != "none":
            meant, room = take(room, x.dtype, *x.shape)
            _as_meant(meant, x, str(params["activations"]))
            x = meant
        parts = tuple(_parts(len(codes), x.shape[1], "cpu" if x.device.type == "cpu" else "cuda"))
        most = max(stop - start for start, stop in parts)
        wide, room = take(room, torch.float32, most, x.shape[1])
        weight, room = (wide, room) if x.dtype == torch.float32 else take(room, x.dtype, most, x.shape[1])
        for start, stop in parts:
            count = stop - start
            part = None if zeros is None else zeros[start:stop]
            decode_into(wide[:count], codes[start:stop], scales[start:stop], part, form)
            if weight is not wide:
                weight[:count].copy_(wide[:count])
            given = {"x": x, "weight": weight[:count]} | ({} if bias is None else {"bias": bias[start:stop]})
            self.inner.run({"out": out["out"][:, start:stop]}, given, {}, room if len(room) else None)
        return None

    def _largest(self, problem: Problem, device: Device) -> Problem:
        """The linear layer's problem with as many rows of the weight as are decoded at a time."""
        parts = _parts(problem.axes["out"], problem.axes["in"], device.kind)
        return plain(problem, max(stop - start for start, stop in parts))


def _parts(out: int, into: int, kind: str) -> Iterator[tuple[int, int]]:
    """Rows of the weight from, to: multiples of `_LEAST`, and at the end fewer than `_LEAST` more than the others."""
    step = max(_LEAST, _ROOM[kind] // (4 * into) // _LEAST * _LEAST)
    start = 0
    while out - start >= step + _LEAST:
        yield start, start + step
        start += step
    yield start, out


def _as_meant(room: Tensor, x: Tensor, form: str) -> None:
    """x as its codes and scales mean it, rounded to the compute dtype: some rows at a time."""
    step = max(1, _QUANTISED // x.shape[1])
    for start in range(0, len(x), step):
        rows = quantise_rows(x[start : start + step], form)
        room[start : start + step].copy_(rows.codes.float().mul_(rows.scales))


def take(workspace: Tensor, dtype: torch.dtype, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """An uninitialised matrix out of a workspace, and what is left of that."""
    size = rows * width * dtype.itemsize
    return workspace[:size].view(dtype).view(rows, width), workspace[aligned(size) :]
