"""Running a tactic in memory that tells on whoever reads or writes what it must not.

Everything around a tensor and everything not yet written is poison: NaN for floats, a wild number for
integers. A view lies like this in its backing memory:

    ########################
    ###[ row 0        ]#####     # poison; a row's start is not aligned, its stride is not its width
    ###[ row 1        ]#####
    ########################
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from allotrope.hw.device import Device
from allotrope.ops.contract import Array, Contract, Operand, Problem, Role
from allotrope.ops.packing import PACKINGS
from allotrope.ops.tactic import Tactic

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
GUARD = 64  # poisoned elements before and after: a multiple of 64 bytes, so that it keeps alignment
LEFT, RIGHT = 3, 5  # poisoned columns beside a strided tensor
RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def torch_dtype(tag: str, compute: str) -> torch.dtype:
    """torch's name for a dtype tag; `compute` stands in for "compute"."""
    return DTYPES[compute if tag == "compute" else tag]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers: NaNs compare, and −0 differs from 0."""
    return tensor.contiguous().view(RAW[tensor.element_size()])


def poison_of(dtype: torch.dtype) -> int:
    """The poison as an integer of the dtype's size: all bits set is a NaN; integers get a wild number."""
    size = torch.empty((), dtype=dtype).element_size()
    byte = b"\xff" if dtype.is_floating_point or dtype == torch.uint8 else b"\x81"
    return int.from_bytes(byte * size, "little", signed=True)


@dataclass(frozen=True)
class Guarded:
    """A tensor with poison all around it."""

    view: torch.Tensor
    backing: torch.Tensor  # 1-D raw integers

    def intact(self) -> bool:
        """Whether the poison around the view is still there."""
        poison = poison_of(self.view.dtype)
        rest = self.backing.clone()
        rest.as_strided(self.view.shape, self.view.stride(), self.view.storage_offset()).fill_(poison)
        return bool((rest == poison).all())


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: str, strided: bool) -> Guarded:
    """Fresh poison with a view of `shape` in it. `strided` leaves poison between the rows, too."""
    width = shape[-1] if shape else 1
    left, right = (LEFT, RIGHT) if strided else (0, 0)
    stride = left + width + right
    rows = prod(shape[:-1])
    raw = RAW[torch.empty((), dtype=dtype).element_size()]
    backing = torch.full((GUARD + rows * stride + GUARD,), poison_of(dtype), dtype=raw, device=device)
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = stride if axis == len(shape) - 2 else strides[axis + 1] * shape[axis + 1]
    return Guarded(backing.view(dtype).as_strided(shape, strides, GUARD + left), backing)


def place(value: torch.Tensor, device: str, strided: bool) -> Guarded:
    """A copy of `value` among poison."""
    found = guarded(tuple(value.shape), value.dtype, device, strided)
    raw = RAW[value.element_size()]
    target = found.backing.as_strided(found.view.shape, found.view.stride(), found.view.storage_offset())
    target.copy_(value.contiguous().view(raw))  # as integers: a NaN's payload survives
    return found


def packed(value: torch.Tensor, packing: str) -> torch.Tensor:
    """A weight as the packing lays it."""
    raw = value.contiguous().view(RAW[value.element_size()])
    return torch.from_numpy(PACKINGS[packing].pack([raw.numpy()])).view(value.dtype)


def out_shape(contract: Contract, operand: Operand, problem: Problem, ins: Mapping[str, Array]) -> tuple[int, ...]:
    """An output's shape, its axes resolved from the inputs' shapes and the problem's axes."""
    sizes = {"unit": 1, **problem.axes}
    for name, value in ins.items():
        if isinstance(value, torch.Tensor):
            sizes.update(zip(contract.ins[name].axes, value.shape, strict=True))
    return tuple(sizes[axis] for axis in operand.axes)


@dataclass(frozen=True)
class PoisonedRun:
    """What came out (on the CPU), and what the poison says: None if the tactic behaved."""

    outs: dict[str, torch.Tensor]
    complaint: str | None


def run(
    tactic: Tactic, contract: Contract, problem: Problem, device: Device, ins: Mapping[str, Array], strided: bool = True
) -> PoisonedRun:
    """Run the tactic once on canonical `ins` (on the CPU, in their final dtypes), in poisoned memory.

    What plans compute in place is computed so here too, unless `strided`.
    """
    where = device.torch_name
    placed: dict[str, Guarded] = {}
    given: dict[str, Any] = {}
    for name, value in ins.items():
        operand = contract.ins[name]
        if not isinstance(value, torch.Tensor) or operand.role is Role.HOST:
            given[name] = {} if operand.dtype == "memo" else value  # what was derived from other inputs is no use
            continue
        laid = packed(value, tactic.packings().get(name, "rows")) if operand.role is Role.WEIGHT else value
        movable = operand.role is Role.ACTIVATION or (operand.role is Role.STEP and value.dim() == 1)
        placed[name] = place(laid, where, strided and movable)
        given[name] = placed[name].view
    lies = {name: name for name, operand in contract.ins.items() if operand.inout}
    if not strided:
        lies |= contract.in_place
    before = {name: found.backing.clone() for name, found in placed.items() if name not in lies.values()}
    outs = {
        name: placed[lies[name]]
        if name in lies
        else guarded(
            out_shape(contract, operand, problem, ins), torch_dtype(operand.dtype, problem.dtype), where, strided
        )
        for name, operand in contract.outs.items()
    }
    size = tactic.workspace(problem, device)
    scratch = guarded((size,), torch.uint8, where, strided=False) if size else None
    params = contract.complete(problem.params)
    own = tactic.run({name: out.view for name, out in outs.items()}, given, params, scratch.view if scratch else None)

    complaint = next(
        (f"it changed its input {name}" for name in before if (before[name] != placed[name].backing).any()), None
    )
    for name, out in outs.items():
        complaint = complaint or (None if out.intact() else f"it wrote outside {name}")
    if scratch and not scratch.intact():
        complaint = complaint or f"it wrote outside its workspace of {size} bytes"
    found = {name: out.view for name, out in outs.items()} | dict(own or {})
    return PoisonedRun({name: out.cpu().contiguous() for name, out in found.items()}, complaint)
