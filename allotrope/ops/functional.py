"""A tactic made of functions: most ops' tactics are one function and a few answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from allotrope.hw.device import Device
from allotrope.ops.contract import Array, Problem, Scalar

Run: TypeAlias = Callable[
    [Mapping[str, Array], Mapping[str, Array], Mapping[str, Scalar], Array | None], Mapping[str, Array] | None
]


def _anywhere(problem: Problem, device: Device) -> None:
    """Nothing hinders it."""


def _nothing(problem: Problem, device: Device) -> int:
    return 0


@dataclass(frozen=True)
class FunctionTactic:
    """A `Tactic` whose every answer is a field.

    `rowwise` says why it has no row class, as a sentence, or None if it has one, which is then its own name.
    """

    op: str
    name: str
    run: Run
    weights: Mapping[str, str] = field(default_factory=dict)  # weight operand → packing
    refuses: Callable[[Problem, Device], str | None] = _anywhere
    rowwise: Callable[[Problem, Device], str | None] = _anywhere
    scratch: Callable[[Problem, Device], int] = _nothing
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        """For each weight operand, the packing it reads."""
        return self.weights

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Why it cannot serve the problem here."""
        return self.refuses(problem, device)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Its own name, unless something makes its bits depend on the other rows."""
        return self.name if self.rowwise(problem, device) is None else None

    def workspace(self, problem: Problem, device: Device) -> int:
        """Bytes of scratch memory."""
        return self.scratch(problem, device)


def aligned(value: Array) -> Array:
    """`value`, copied if it does not lie dense at a 16-byte boundary.

    On CUDA torch's norms read four elements at a time where everything lies so, and sum in another order
    where it does not: a row's bits would depend on the buffer that it lies in.
    """
    if value.is_contiguous() and value.data_ptr() % 16 == 0:
        return value
    return value.contiguous().clone()
