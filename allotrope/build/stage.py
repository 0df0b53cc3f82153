"""Setting the stage for a tactic: realistic inputs at the problem's true size, weights as cold as in a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from allotrope.hw.device import Device
from allotrope.hw.timer import Run
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Array, Contract, Problem, Role, Scalar
from allotrope.ops.native import NativeTactic
from allotrope.ops.tactic import Tactic

# Weights are rotated among copies until they exceed any cache, as a model's other layers would see to;
# a single weight of this size is cold anyway.
_COLD_BYTES = 96 * 2**20
_MOST_COPIES = 64


def shrunk(problem: Problem, most_values: int) -> Problem:
    """`problem` with the leading axes of its weight matrices cut so that none has over `most_values` values.

    Rows of a weight matrix are computed (or looked up) independently of each other, so a check loses
    nothing by seeing fewer; on a 7B model it saves gigabytes of fp64.
    """
    axes = dict(problem.axes)
    for operand in registry.contract(problem.op).ins.values():
        if operand.role is Role.WEIGHT and len(operand.axes) > 1:
            row = math.prod(axes[axis] for axis in operand.axes[1:])
            lead = operand.axes[0]
            axes[lead] = min(axes[lead], max(64, most_values // row))
    if "pages" in axes:  # of the pool, only as many as the rows can touch
        axes["pages"] = min(axes["pages"], max(4, axes["rows"]))
    return replace(problem, axes=axes)


@dataclass(frozen=True)
class Stage:
    """Inputs of one problem on its device, for any of its tactics. Weights are canonical."""

    contract: Contract
    problem: Problem
    device: Device
    ins: Mapping[str, Array]

    @staticmethod
    def of(problem: Problem, device: Device, seed: int, most_values: int) -> Stage:
        """Inputs made for the shrunk problem, weights repeated to full size: realistic, and soon made."""
        contract = registry.contract(problem.op)
        small = shrunk(problem, most_values)
        ins = check.rounded(contract, small, contract.make_inputs(small, seed))
        for name, value in ins.items():
            operand = contract.ins[name]
            if isinstance(value, torch.Tensor):
                for place, axis in enumerate(operand.axes):
                    if small.axes.get(axis) != problem.axes.get(axis) and axis != "pages":
                        ins[name] = _repeated(ins[name], place, problem.axes[axis])
        return Stage(contract, problem, device, ins)

    def call(self, tactic: Tactic, cold_bytes: int = _COLD_BYTES) -> Callable[[int], None]:
        """What to time: runs the tactic, on the i-th copy of its weights, which in all take about `cold_bytes`."""
        outs, sets, params, workspace = self._set_up(tactic, cold_bytes)

        def run(i: int) -> None:
            tactic.run(outs, sets[i % len(sets)], params, workspace)

        return run

    def series(self, tactic: NativeTactic) -> Run:
        """Likewise of a tactic of the native core: so many calls as one step makes them, and their seconds."""
        outs, sets, params, workspace = self._set_up(tactic, _COLD_BYTES)
        series = tactic.series(outs, sets, params, workspace)
        held = (outs, sets, workspace)  # as long as the series: the core knows no more than where they lie

        def run(first: int, count: int, _held: object = held) -> float:
            return series(first, count)

        return run

    def _set_up(
        self, tactic: Tactic, cold_bytes: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]], Mapping[str, Scalar], torch.Tensor | None]:
        """Outputs, a set of inputs for each copy of the weights, parameters and a workspace."""
        packings, where = tactic.packings(), self.device.torch_name
        given: dict[str, Any] = {}
        cold: dict[str, torch.Tensor] = {}
        for name, value in self.ins.items():
            role = self.contract.ins[name].role
            if not isinstance(value, torch.Tensor) or role is Role.HOST:
                given[name] = value
            elif role is Role.WEIGHT:
                cold[name] = poison.packed(value, packings.get(name, "rows")).to(where)
            else:
                given[name] = value.to(where, copy=True)
        size = sum(weight.nbytes for weight in cold.values())
        copies = max(1, min(_MOST_COPIES, min(cold_bytes, _COLD_BYTES) // max(size, 1))) if cold else 1
        sets = [given | (cold if i == 0 else {name: w.clone() for name, w in cold.items()}) for i in range(copies)]
        # What a plan computes in place is timed in place: its values grow, whose size no kernel's time follows.
        lies = {name: name for name, operand in self.contract.outs.items() if operand.inout}
        lies |= self.contract.in_place
        outs = {
            name: given[lies[name]] if name in lies else self._empty(operand.dtype, operand, where)
            for name, operand in self.contract.outs.items()
        }
        scratch = tactic.workspace(self.problem, self.device)
        workspace = torch.empty(scratch, dtype=torch.uint8, device=where) if scratch else None
        return outs, sets, self.contract.complete(self.problem.params), workspace

    def _empty(self, dtype: str, operand: Any, where: str) -> torch.Tensor:
        shape = poison.out_shape(self.contract, operand, self.problem, self.ins)
        return torch.empty(shape, dtype=poison.torch_dtype(dtype, self.problem.dtype), device=where)


def _repeated(value: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """`value` repeated along an axis to this size."""
    times = -(-size // value.shape[axis])
    repeats = [times if place == axis else 1 for place in range(value.dim())]
    return value if times == 1 else value.repeat(repeats).narrow(axis, 0, size)
