"""A dress rehearsal: a plan run as it would be, step for step by the same executor, over weights that are made up.

What a step costs does not depend on what the weights say, only on where they lie and how they are read. So the time of
a change is known before anything is quantised: no weight is read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from allotrope.artifact import layout
from allotrope.artifact.engine import Engine
from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import Plan, Weight
from allotrope.explain.drive import Asked, Run, clocked
from allotrope.hw.device import Device
from allotrope.ops.packing import RawArray
from allotrope.runtime.opening import open_with
from allotrope.runtime.options import RuntimeOptions

_DISTINCT = 1 << 30  # bytes of weights with memory of their own: far beyond any cache, so that reuse shows nowhere
_BLOCK = 1 << 20  # values that are drawn; the rest repeats them
_BYTES = (0x3C, 0xBC)  # of packed codes and their scales: 1.06 in fp16, ±0.0115 in bf16 and fp32, never NaN or denormal
_BF16 = 16  # bits that it lacks of fp32
_MATRIX, _NORM, _BIAS, _SCALES = "matrix", "norm", "bias", "scales"
# Mean and spread of what is drawn: a model's own sizes. Values far beyond them would end in denormals, which are slow.
_DRAWN = {_MATRIX: (0.0, 0.02), _NORM: (1.0, 0.1), _BIAS: (0.0, 0.02), _SCALES: (5e-4, 5e-5)}  # scales: of codes to 127
_MOST_SEQS = 4096  # that a runtime takes
RUNS = 7


class Dressed(Engine):
    """An engine with another plan, whose weights are random values in that plan's formats and packings."""

    def __init__(self, path: Path, described: Manifest, plan: Plan) -> None:
        super().__init__(path, replace(described, plan=plan))
        self._random = np.random.default_rng(0)
        self._made: dict[str, RawArray] = {}
        self._alike: dict[tuple[str, str, tuple[int, ...]], RawArray] = {}
        self._bytes = 0

    def array(self, name: str) -> RawArray:
        """A weight, made when it is first asked for."""
        if name not in self._made:
            weight = self.manifest.plan.weights[name]
            shape = layout.packed_shape(weight)
            key = _role(weight, shape), layout.stored_dtype(self.manifest.plan, weight), shape
            if key not in self._alike or self._bytes < _DISTINCT:
                self._alike[key] = self._drawn(*key)
                self._bytes += self._alike[key].nbytes
            self._made[name] = self._alike[key]
        return self._made[name]

    def forget(self) -> None:
        """There is no file that it could come back from."""

    def _drawn(self, role: str, dtype: str, shape: tuple[int, ...]) -> RawArray:
        carrier = np.dtype(layout.STORED[dtype][1])
        count = min(math.prod(shape), _BLOCK)
        if carrier.kind in "iu" and dtype != "bf16":
            block = self._random.choice(np.array(_BYTES, np.uint8), count * carrier.itemsize).view(carrier)
        else:
            wide = self._random.normal(*_DRAWN[role], count).astype(np.float32)
            block = (wide.view(np.uint32) >> _BF16).astype(np.uint16) if dtype == "bf16" else wide.astype(carrier)
        return np.resize(block, shape)


def _role(weight: Weight, shape: tuple[int, ...]) -> str:
    """What a weight is, by its name and shape."""
    last = weight.parts[0][0].rpartition(".")[2]
    return last if last in (_BIAS, _SCALES) else _MATRIX if len(shape) > 1 else _NORM


def rehearse(
    folder: Path, described: Manifest, plan: Plan, asked: Asked, options: RuntimeOptions, device: Device, seed: int
) -> Run:
    """The run in the middle of several."""
    seqs = min(max(options.max_num_seqs, 2 * asked.batch), _MOST_SEQS)
    opened = open_with(Dressed(folder, described, plan), device, replace(options, max_num_seqs=seqs), timed=True)
    try:
        random = np.random.default_rng([seed, 2])
        runs = [clocked(opened, asked, options, random) for _ in range(1 + RUNS)][1:]
    finally:
        opened.executor.close()
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
