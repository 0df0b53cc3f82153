"""What an op is: named axes, inputs and outputs, parameters, cost, reference and input maker.

An operand `memo` (a dict, dtype tag "memo") lives as long as a step: what a tactic derives from the step's operands
alone, it keeps there for the other layers.

Every activation is two-dimensional, `[rows, width]`, its last axis contiguous and its row stride free,
so that a buffer may be a column slice of another. Importing a contract imports no torch: the reference
and the input maker live in the op's `reference.py` and load when first called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

Scalar: TypeAlias = int | float | str | bool
Array: TypeAlias = Any
"""A tensor of whichever library the tactic uses; contracts never look inside."""

ELEMENT_BYTES: Mapping[str, int] = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "int32": 4, "int64": 8, "uint8": 1}
"""The size of one element of a dtype tag, for costs."""


class Role(StrEnum):
    """Who owns a tensor, and therefore where its memory comes from and what its dtype is."""

    ACTIVATION = "activation"  # a plan buffer, in the compute dtype unless the spec says otherwise
    WEIGHT = "weight"  # from the engine's files, packed as the tactic asks
    STEP = "step"  # made anew by the executor for each step, on the device
    HOST = "host"  # the same facts on the host, for tactics that plan there (never capturable); and the memo
    CACHE = "cache"  # the paged KV pool


@dataclass(frozen=True)
class Operand:
    """One tensor of a contract. `axes` are names, resolved per call from the shapes of what is passed."""

    axes: tuple[str, ...]
    role: Role = Role.ACTIVATION
    dtype: str = (
        "compute"  # "compute", a fixed one: fp32 fp64 int32 int64 uint8, or "stored", as a weight's file has it
    )
    optional: bool = False
    inout: bool = False  # read and written in place (the caches)


@dataclass(frozen=True)
class Cost:
    """The least that an op must do: bytes that move through memory once, and arithmetic."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Problem:
    """One concrete instance of an op: what a tactic is asked whether it supports, and what is timed."""

    op: str
    axes: Mapping[str, int]
    params: Mapping[str, Scalar]
    dtype: str  # the compute dtype: fp32 fp16 bf16
    present: frozenset[str] = frozenset()  # which optional operands are there

    def key(self) -> str:
        """A stable text that identifies the problem; timings are kept under it."""
        axes = ",".join(f"{name}={size}" for name, size in sorted(self.axes.items()))
        params = ",".join(f"{name}={value}" for name, value in sorted(self.params.items()))
        return f"{self.op}[{axes}]({params}){{{','.join(sorted(self.present))}}}:{self.dtype}"


@dataclass(frozen=True)
class Contract:
    """An op's contract. `rows` names the axis along which requests lie side by side (what buckets are over)."""

    name: str
    ins: Mapping[str, Operand]
    outs: Mapping[str, Operand]
    cost: Callable[[Problem], Cost]
    params: Mapping[str, Scalar | None] = field(default_factory=dict)  # name → default; None = mandatory
    rows: str = "rows"
    exact: bool = False  # moves data only: compared bit for bit
    in_place: Mapping[str, str] = field(default_factory=dict)  # output → the input in whose memory a plan leaves it

    def reference(self, ins: Mapping[str, Array], params: Mapping[str, Scalar]) -> dict[str, Array]:
        """The reference: plain torch, in the inputs' float dtype; inout operands come back new."""
        outs: dict[str, Array] = self._module().reference(ins, params)
        return outs

    def make_inputs(self, problem: Problem, seed: int) -> dict[str, Array]:
        """Realistic fp64 and integer tensors on the CPU, with outliers, and poison where nothing may be read."""
        ins: dict[str, Array] = self._module().make_inputs(problem, seed)
        return ins

    def _module(self) -> Any:
        return importlib.import_module(f"allotrope.ops.{self.name}.reference")

    def complete(self, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """`params` with defaults filled in; unknown and missing names are errors."""
        unknown = set(params) - set(self.params)
        if unknown:
            raise KeyError(f"op {self.name} has no parameter {sorted(unknown)}")
        filled = {name: params.get(name, default) for name, default in self.params.items()}
        missing = [name for name, value in filled.items() if value is None]
        if missing:
            raise KeyError(f"op {self.name} needs parameter {missing}")
        return {name: value for name, value in filled.items() if value is not None}
