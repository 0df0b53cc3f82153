"""Which ops and tactics there are: the folder listing is the registry.

A folder under `ops/` with a contract is an op, and each `via_LIBRARY.py` in it holds that library's
tactics, whose names start with the library's. So one tactic is found without importing any other library.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from allotrope.errors import EngineError, UsageError
from allotrope.hw.device import Device
from allotrope.ops.contract import Array, Contract, Problem, Scalar
from allotrope.ops.tactic import REFERENCE, Tactic

FOLDER = Path(__file__).parent


@cache
def names() -> tuple[str, ...]:
    """Every op, in alphabetical order."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules([str(FOLDER)]) if found.ispkg))


@cache
def contract(op: str) -> Contract:
    """The op's contract."""
    if op not in names():
        raise UsageError(f"there is no op {op!r}", where="ops", remedy=f"ops are: {', '.join(names())}")
    found: Contract = importlib.import_module(f"allotrope.ops.{op}").CONTRACT
    return found


def reference_module(op: str) -> ModuleType:
    """The op's `reference.py`, for what it may offer beside the contract's own two functions."""
    contract(op)
    return importlib.import_module(f"allotrope.ops.{op}.reference")


def libraries(op: str) -> tuple[str, ...]:
    """The libraries that the op has tactics for, torch first, then in alphabetical order."""
    found = (path.stem.removeprefix("via_") for path in (FOLDER / op).glob("via_*.py"))
    return tuple(sorted(found, key=lambda library: (library != "torch", library)))


@cache
def tactics(op: str) -> tuple[Tactic, ...]:
    """The op's tactics in listing order, without the reference; a library that is not installed gives none."""
    contract(op)  # an unknown op is an error, not an empty listing
    return tuple(tactic for library in libraries(op) for tactic in _tactics_of(op, library))


@cache
def tactic(op: str, name: str) -> Tactic:
    """One tactic by name; "reference" is the op's reference, computed in fp32."""
    known = contract(op)
    if name == REFERENCE:
        return ReferenceTactic(known)
    library = name.partition("_")[0]
    if library in libraries(op):
        for candidate in _tactics_of(op, library):
            if candidate.name == name:
                return candidate
    raise EngineError(
        f"op {op} has no tactic {name!r} in this installation", remedy="rebuild the engine here with: allotrope build"
    )


@cache
def _tactics_of(op: str, library: str) -> tuple[Tactic, ...]:
    try:
        module: ModuleType = importlib.import_module(f"allotrope.ops.{op}.via_{library}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "allotrope":
            raise
        return ()  # the library is an extra that this installation does not have
    found: tuple[Tactic, ...] = module.TACTICS
    return found


@dataclass(frozen=True, eq=False)
class ReferenceTactic:
    """The op's reference as a tactic: what `--plan reference`, `--locate` and bisecting run.

    It computes in fp32 whatever the compute dtype, except for an op that only moves data, whose bits pass
    through untouched. It takes temporary memory as it likes.
    """

    contract: Contract
    name: str = REFERENCE
    version: int = 1
    capturable: bool = False

    @property
    def op(self) -> str:
        """The op's name."""
        return self.contract.name

    def packings(self) -> Mapping[str, str]:
        """The canonical layout of every weight."""
        return {name: "rows" for name, operand in self.contract.ins.items() if operand.role == "weight"}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """Nothing hinders it."""
        return None

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """None: it may use a library's matrix product, whose bits change with the row count."""
        return None

    def workspace(self, problem: Problem, device: Device) -> int:
        """None of its own."""
        return 0

    def run(
        self,
        out: Mapping[str, Array],
        ins: Mapping[str, Array],
        params: Mapping[str, Scalar],
        workspace: Array | None,
    ) -> None:
        """Compute in fp32 and round once, into `out`."""
        import torch

        def widened(value: Array) -> Array:
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.float() if floating and not self.contract.exact else value

        results = self.contract.reference(
            {name: widened(value) for name, value in ins.items()}, self.contract.complete(params)
        )
        for name, target in out.items():
            target.copy_(results[name].reshape(target.shape))
