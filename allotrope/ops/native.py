"""A tactic that is a kernel of the native core: the same call from Python, over torch's tensors or NumPy's arrays.

The kernel's source stands beside its op, as `via_native.cpp`; see `native/core/kernel.h` for what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, TypeAlias

from allotrope import native
from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.contract import Array, Problem, Role, Scalar

Described: TypeAlias = tuple[int, int, int, int, int, int]
"""Address, rows, width, bytes from row to row, dtype, rows of a page: a `View` of the core."""

ABSENT: Described = (0, 0, 0, 0, 0, 0)
# As in kernel.h. What NumPy calls uint16 is bf16, which it has no name for.
_DTYPES = {
    "float32": 1,
    "float16": 2,
    "bfloat16": 3,
    "uint16": 3,
    "float64": 4,
    "int32": 5,
    "int64": 6,
    "uint8": 7,
    "int8": 8,
}
_ALIGN = 64


def _anywhere(problem: Problem) -> None:
    """Nothing hinders it."""


def _none(params: Mapping[str, Scalar]) -> Sequence[float]:
    return ()


@dataclass(frozen=True)
class Prelude:
    """A kernel that makes something of the step alone, once for all calls for which it makes the same.

    It is given the call's operands and numbers, and writes `room(rows, params)` bytes at its workspace; the calls find
    that as `shared`. Calls share where `key(params)` is equal, and so what it makes may depend on nothing else but
    the step's operands.
    """

    kernel: str
    room: Callable[[int, Mapping[str, Scalar]], int]
    key: Callable[[Mapping[str, Scalar]], Sequence[float]]


@dataclass(frozen=True)
class NativeTactic:
    """A `Tactic` whose work one kernel does, in fp32. Its bits are each row's own, for any number of threads.

    `classed`: the row class, if it is not its own name. `sizes(problem)`: what its scratch memory depends on, as the
    kernel's `Sizing` reads it; None if it needs none.
    """

    op: str
    name: str
    kernel: str
    numbers: Callable[[Mapping[str, Scalar]], Sequence[float]] = _none  # its parameters as the kernel reads them
    weights: Mapping[str, str] = field(default_factory=dict)  # weight operand → packing
    refuses: Callable[[Problem], str | None] = _anywhere
    sizes: Callable[[Problem], Sequence[int]] | None = None
    prelude: Prelude | None = None
    classed: str | None = None
    version: int = 1
    capturable: bool = False

    def packings(self) -> Mapping[str, str]:
        """For each weight operand, the packing it reads."""
        return self.weights

    def why_not(self, problem: Problem, device: Device) -> str | None:
        """No core, another device, another dtype; or what the kernel itself cannot do."""
        if device.kind != "cpu":
            return f"the native core runs on CPUs, not on {device.kind}"
        if problem.dtype != "fp32":
            return f"the native core computes in fp32, not in {problem.dtype}"
        kernels = (self.kernel,) if self.prelude is None else (self.kernel, self.prelude.kernel)
        return native.why_not(*kernels) or self.refuses(problem)

    def row_class(self, problem: Problem, device: Device) -> str | None:
        """Work is split by rows, columns and heads, never within a sum."""
        return self.classed or self.name

    def scratch(self, problem: Problem, threads: int) -> int:
        """Bytes that the kernel needs on so many threads: the core's word, for the instruction set in use."""
        if self.sizes is None:
            return 0
        found = native.find()
        return int(found.core.workspace(found.isa, self.kernel, list(self.sizes(problem)), threads))

    def workspace(self, problem: Problem, device: Device) -> int:
        """The kernel's scratch memory and, for a call by itself, what its prelude makes."""
        own = self.scratch(problem, native.threads())
        return own + (0 if self.prelude is None else aligned(self.prelude.room(_rows(problem), problem.params)))

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        """One call into the core."""
        found, given, (prelude, made, *rest) = native.find(), self._given(ins), self._handed(out, params, workspace)
        found.core.run(found.isa, self.kernel, prelude, given, made, *rest)

    def series(
        self,
        out: Mapping[str, Array],
        sets: Sequence[Mapping[str, Array]],
        params: Mapping[str, Scalar],
        workspace: Array | None,
    ) -> Callable[[int, int], float]:
        """Calls one after the other in one call into the core, as in a step: its threads are woken once for all.

        What it gives is called with the place of the first call and their number; the i-th call is given `sets[i]`, all
        sets in turn, which must live as long. It gives the seconds that they took once the threads were awake.
        """
        prelude, made, *rest = self._handed(out, params, workspace)
        found, given = native.find(), [(self._given(ins), made) for ins in sets]
        run: Callable[[int, int], float] = found.core.Series(found.isa, self.kernel, prelude, given, *rest).run
        return run

    def _given(self, ins: Mapping[str, Array]) -> list[Described]:
        return [describe(ins[name]) if name in ins else ABSENT for name in operands(self.op)[0]]

    def _handed(
        self, out: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> tuple[Any, ...]:
        """Prelude, outputs, numbers, the kernel's place and the prelude's, threads."""
        if workspace is None and self.sizes is not None:
            raise TypeError(f"{self.name} of {self.op} needs its workspace")  # the kernel would write to address 0
        made, prelude = [describe(out[name]) for name in operands(self.op)[1]], ""
        shared = place = 0 if workspace is None else describe(workspace)[0]
        if self.prelude is not None:  # [ what it makes ][ the kernel's scratch memory ]
            prelude, place = self.prelude.kernel, shared + aligned(self.prelude.room(made[0][1], params))
        numbers = [float(number) for number in self.numbers(params)]
        return prelude, made, numbers, place, shared, native.threads()


def _rows(problem: Problem) -> int:
    return problem.axes[registry.contract(problem.op).rows]


def only(param: str, value: str, complaint: str) -> Callable[[Problem], str | None]:
    """What a tactic refuses that serves one value of a parameter: `complaint` has places for that and what is given."""

    def refuses(problem: Problem) -> str | None:
        given = problem.params[param]
        return None if given == value else complaint.format(value, given)

    return refuses


def aligned(size: int) -> int:
    """`size` up to where a workspace's next part may begin."""
    return -(-size // _ALIGN) * _ALIGN


@cache
def operands(op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs and outputs in the order in which kernels know them: the contract's, without what lies on the host."""
    contract = registry.contract(op)
    ins = tuple(name for name, operand in contract.ins.items() if operand.role is not Role.HOST)
    return ins, tuple(contract.outs)


def describe(array: Any) -> Described:
    """A tensor or array as the core sees it."""
    shape = tuple(array.shape)
    dtype = _DTYPES[str(array.dtype).rpartition(".")[2]]
    if hasattr(array, "data_ptr"):
        address, size = array.data_ptr(), array.element_size()
        strides = tuple(step * size for step in array.stride())
    else:
        address, size, strides = array.__array_interface__["data"][0], array.itemsize, array.strides
    if len(shape) < 2:
        dense = not shape or shape[0] < 2 or strides[0] == size
        view = (address, 1, shape[0] if shape else 1, size * (shape[0] if shape else 1), dtype, 0)
    elif len(shape) == 3 and strides[0] == shape[1] * strides[1]:
        dense = shape[2] < 2 or strides[2] == size
        view = (address, shape[0] * shape[1], shape[2], strides[1], dtype, shape[1])
    else:
        width = prod(shape[1:])
        dense = width < 2 or _dense(shape[1:], strides[1:], size)
        view = (address, shape[0], width, strides[0], dtype, 0)
    if not dense:
        raise ValueError(f"an operand's rows must lie dense, and {shape} lies in steps of {strides} bytes")
    return view


def described_cache(array: Any) -> tuple[Described, int]:
    """The same of a cache [pages, page_size, width], and how far its pages lie apart."""
    pages, page_size, width = array.shape
    address, _, _, stride, dtype, _ = describe(array[0])
    return (address, pages * page_size, width, stride, dtype, page_size), array.strides[0]


def _dense(shape: Sequence[int], strides: Sequence[int], size: int) -> bool:
    """Whether elements of this size lie one after the other. How far it is to the next of one is no matter."""
    for length, step in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and step != size:
            return False
        size *= length
    return True
