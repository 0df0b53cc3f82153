"""The weight widened into the workspace, then one of the linear layer's own tactics: right everywhere, fast nowhere.

    [ wide weight: out × in ][ what the linear tactic needs ]

Its row class is that tactic's, for the wide weight is the same however many rows there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import ELEMENT_BYTES, Array, Problem, Scalar
from allotrope.ops.linear import via_torch as linear
from allotrope.ops.linear_stored import STORES
from allotrope.ops.tactic import Tactic


@dataclass(frozen=True)
class Widened:
    """A linear tactic over a weight that is widened first."""

    inner: Tactic
    op: str = "linear_stored"
    version: int = 1

    @property
    def name(self) -> str:
        """The linear tactic's."""
        return self.inner.name

    @property
    def capturable(self) -> bool:
        """As the linear tactic is: widening asks nothing of the host."""
        return self.inner.capturable

    @property
    def rows_of_a_tile(self) -> int:
        """See `granule`."""
        return int(getattr(self.inner, "rows_of_a_tile", 1))

    def packings(self) -> Mapping[str, str]:
        """The linear tactic's: widening changes no order."""
        return self.inner.packings()

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """A store that is unknown or would be rounded, or what the linear tactic says."""
        store = str(problem.params["store"])
        if store not in STORES:
            return f"a store in {store!r} is unknown; there are {', '.join(STORES)}"
        if problem.dtype != "fp32":
            return f"weights stored in {store} would be rounded once more to {problem.dtype}"
        return self.inner.why_not(_plain(problem), device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """That of the linear tactic."""
        return self.inner.row_class(_plain(problem), device)

    def workspace(self, problem: Problem, device: Device) -> int:
        """The wide weight, and the linear tactic's own."""
        return _room(problem) + self.inner.workspace(_plain(problem), device)

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array] | None:
        """Widen, multiply."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x: Tensor = ins["x"]
        stored: Tensor = ins["weight"]
        size = stored.numel() * x.dtype.itemsize
        weight = workspace[:size].view(x.dtype).view(stored.shape)
        weight.copy_(stored)
        rest = workspace[linear.aligned(size) :]
        return self.inner.run(out, {**ins, "weight": weight}, {}, rest if len(rest) else None)


def _plain(problem: Problem) -> Problem:
    return replace(problem, op="linear", params={})


def _room(problem: Problem) -> int:
    return linear.aligned(problem.axes["out"] * problem.axes["in"] * ELEMENT_BYTES[problem.dtype])


TACTICS: tuple[Widened, ...] = tuple(Widened(tactic) for tactic in linear.TACTICS)
