"""What a tactic is: one way to compute an op on one kind of device.

A tactic runs `(out, ins, params, workspace)`. It writes every element of `out` and nothing else, waits for nothing
and asks for no memory that outlives the call. (torch's own kernels may take temporaries from torch's caching
allocator, which a graph capture redirects to its own pool; the workspace is what the tactic itself needs, known when
planning.) Where a library gives a result in memory of its own, a tactic may return that under its operand's name
instead of copying it to `out`: whoever reads the operand then reads this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from allotrope.hw.device import Device
from allotrope.ops.contract import Array, Problem, Scalar

REFERENCE = "reference"
"""The name of the tactic that every op has: its reference, computed in fp32."""


class Tactic(Protocol):
    """One way to compute an op. Instances are immutable and live in a module's `TACTICS` tuple."""

    @property
    def op(self) -> str:
        """The op's name."""
        ...

    @property
    def name(self) -> str:
        """Unique within the op, starting with the library: `torch_tile16`."""
        ...

    @property
    def version(self) -> int:
        """Goes up when the tactic's results may change in a bit; engines record it."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may capture it: no host data read, no synchronisation."""
        ...

    def packings(self) -> Mapping[str, str]:
        """For each weight operand, the packing it reads (see `allotrope.ops.packing`)."""
        ...

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Why this tactic cannot serve the problem here, as a sentence; None if it can."""
        ...

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """The class of tactics with the same bits for a row whatever the other rows are, or None if it has none."""
        ...

    def workspace(self, problem: Problem, device: Device) -> int:
        """Bytes of scratch memory that `run` needs."""
        ...

    def run(
        self,
        out: Mapping[str, Array],
        ins: Mapping[str, Array],
        params: Mapping[str, Scalar],
        workspace: Array | None,
    ) -> Mapping[str, Array] | None:
        """Compute. `workspace` is at least `workspace(problem)` bytes, 64-byte aligned; None if it needs none."""
        ...


def granule(tactic: Tactic) -> int:
    """The rows of its tiles, for a tactic that says so: multiples of this cost it no copies."""
    return int(getattr(tactic, "rows_of_a_tile", 1))
