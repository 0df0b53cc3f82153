"""Writes the calls that `check.cpp` makes again: `python native/test/cases.py FILE`.

Every problem that the tests pose to the core, odd sizes, strides and poison with it, is posed once; what the core was
called with, and what it gave, goes into the file. Little-endian, one record per call, as `check.cpp` reads it.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from allotrope import native
from allotrope.ops import check, poison, registry
from allotrope.ops.contract import Problem
from allotrope.ops.native import NativeTactic, aligned
from tests import test_native_linear, test_native_ops
from tests.engines import CPU

_ABSENT = 0xFFFFFFFF
_SIZES = {
    0: 4,
    1: 4,
    2: 2,
    3: 2,
    4: 8,
    5: 4,
    6: 8,
    7: 1,
    8: 1,
}  # bytes of an element, by the core's number of its dtype


class Recorder:
    """Stands for the extension: writes down each call, and makes it."""

    def __init__(self, core: Any, file: BinaryIO) -> None:
        self._core, self._file = core, file
        self.tactic: NativeTactic | None = None
        self.problem: Problem | None = None
        self.calls = 0

    def run(self, isa: str, kernel: str, prelude: str, ins: Any, outs: Any, numbers: Any, *rest: Any) -> None:
        """One call, with what it reads before it and what it wrote behind it."""
        if self.tactic is None or self.problem is None:
            raise TypeError("nobody said what is called")
        views = [*ins, *outs]
        blocks = list(dict.fromkeys((view[0], _span(view)) for view in views if view[0]))
        written = {(view[0], _span(view)) for view in outs}
        before = [ctypes.string_at(*block) for block in blocks]
        self._core.run(isa, kernel, prelude, ins, outs, numbers, *rest)
        self._words(kernel, prelude)
        self._numbers("d", *numbers)
        self._numbers("I", len(ins))
        self._file.write(struct.pack("<I", len(views)))
        for view in views:
            at = blocks.index((view[0], _span(view))) if view[0] else _ABSENT
            self._file.write(struct.pack("<IqqqIi", at, *view[1:]))
        self._file.write(struct.pack("<I", len(blocks)))
        for block, held in zip(blocks, before, strict=True):
            self._file.write(struct.pack("<qI", len(held), block in written) + held)
            if block in written:
                self._file.write(ctypes.string_at(*block))
        sizes = self.tactic.sizes
        self._numbers("q", *(() if sizes is None else sizes(self.problem)))
        whole = self.tactic.workspace(self.problem, CPU) - self.tactic.scratch(self.problem, native.threads())
        self._file.write(struct.pack("<q", aligned(whole)))
        self.calls += 1

    def workspace(self, *asked: Any) -> int:
        """The extension's answer."""
        return int(self._core.workspace(*asked))

    def _words(self, *words: str) -> None:
        for word in words:
            self._file.write(struct.pack("<I", len(word)) + word.encode("ascii"))

    def _numbers(self, kind: str, *numbers: float) -> None:
        self._file.write(struct.pack(f"<I{len(numbers)}{kind}", len(numbers), *numbers))


def _span(view: tuple[int, ...]) -> int:
    """The bytes from a view's first element to behind its last."""
    _, rows, width, stride, dtype, _ = view
    return (rows - 1) * stride + width * _SIZES[dtype] if rows and width else 0


def posed() -> Iterator[tuple[NativeTactic, Problem]]:
    """Every tactic of the core with every problem that it takes."""
    linear = test_native_linear
    for problem in [*test_native_ops.problems(), *linear.WIDE, *linear.CODED, *linear.EIGHT, *linear.EMBED]:
        for tactic in registry.tactics(problem.op):
            if isinstance(tactic, NativeTactic) and tactic.why_not(problem, CPU) is None:
                yield tactic, problem


def main() -> None:
    """Write the file."""
    found = native.find()
    native.set_threads(1)
    with Path(sys.argv[1]).open("wb") as file:
        recorder = Recorder(found.core, file)
        recorded = replace(found, core=recorder)
        recorder._words(found.isa)
        for tactic, problem in posed():
            recorder.tactic, recorder.problem = tactic, problem
            case = check.prepare(problem, CPU, 3)
            native.find = lambda: recorded  # type: ignore[assignment]
            poison.run(tactic, case.contract, problem, CPU, case.ins, True)
    sys.stdout.write(f"{recorder.calls} calls\n")


if __name__ == "__main__":
    main()
