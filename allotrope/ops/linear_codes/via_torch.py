"""The weight decoded into the workspace, then one of the linear layer's own tactics: right everywhere, fast nowhere.

    [ decoded weight: out × in ][ what the linear tactic needs ]

Its row class is that tactic's, for the decoded weight is the same however many rows there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.codes import decoded
from allotrope.ops.contract import ELEMENT_BYTES, Array, Problem, Scalar
from allotrope.ops.linear import via_torch as linear
from allotrope.ops.linear_codes import FORMATS, PER_BYTE
from allotrope.ops.tactic import Tactic

_LINE = 64  # bytes: what a workspace's parts are aligned to


@dataclass(frozen=True)
class Decoded:
    """A linear tactic over a weight that is decoded first."""

    inner: Tactic
    op: str = "linear_codes"
    version: int = 1

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
        """A format that is unknown, sizes that do not fit, or what the linear tactic says."""
        form, axes = str(problem.params["format"]), problem.axes
        if form not in FORMATS:
            return f"format {form!r} is unknown; there are {', '.join(FORMATS)}"
        if axes["packed"] * PER_BYTE[form] != axes["in"] or axes["in"] % axes["groups"]:
            return f"{axes['packed']} bytes and {axes['groups']} groups a row do not fit {axes['in']} codes of {form}"
        if "zeros" in problem.present and form != "int4":
            return f"{form} has no zeros, for it is symmetric"
        return self.inner.why_not(_plain(problem), device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """That of the linear tactic."""
        return self.inner.row_class(_plain(problem), device)

    def workspace(self, problem: Problem, device: Device) -> int:
        """The decoded weight, and the linear tactic's own."""
        return _room(problem) + self.inner.workspace(_plain(problem), device)

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> Mapping[str, Array] | None:
        """Decode, multiply."""
        if workspace is None:
            raise ValueError(f"{self.name} needs its workspace")
        x: Tensor = ins["x"]
        shape = (ins["codes"].shape[0], x.shape[1])
        size = shape[0] * shape[1] * x.dtype.itemsize
        weight = workspace[:size].view(x.dtype).view(shape)
        weight.copy_(decoded(ins["codes"], ins["scales"], ins.get("zeros"), str(params["format"]), x.dtype))
        given = {name: value for name, value in ins.items() if name in ("x", "bias")} | {"weight": weight}
        rest = workspace[-(-size // _LINE) * _LINE :]
        return self.inner.run(out, given, {}, rest if len(rest) else None)


def _plain(problem: Problem) -> Problem:
    """The linear layer's problem with the decoded weight."""
    axes = {name: problem.axes[name] for name in ("rows", "in", "out")}
    return replace(problem, op="linear", axes=axes, params={}, present=problem.present & {"bias"})


def _room(problem: Problem) -> int:
    size = problem.axes["out"] * problem.axes["in"] * ELEMENT_BYTES[problem.dtype]
    return -(-size // _LINE) * _LINE


TACTICS: tuple[Decoded, ...] = tuple(
    Decoded(tactic) for tactic in linear.TACTICS if tactic.packings().get("weight") == "rows"
)
