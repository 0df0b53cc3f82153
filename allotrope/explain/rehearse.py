"""Calls timed outside of any model, so that a tactic's pace is known before an engine has it.

Weights are rotated among as many copies as a step of the model reads in all: what a cache keeps there, it keeps here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.build.stage import Stage
from allotrope.hw.device import Device
from allotrope.hw.timer import time_calls
from allotrope.ops import registry

_VALUES = 1 << 22  # of a weight matrix that is made up; the rest repeats it
_SAMPLES, _BUDGET_S = 7, 0.15


@dataclass
class Rehearsal:
    """Times calls, each distinct one once."""

    device: Device
    seed: int = 0
    _known: dict[tuple[str, str, int], float] = field(default_factory=dict)

    def seconds(self, plan: Plan, call: Call, load: Load, held: float) -> float:
        """How long the call takes under this load, with weights as cold as among `held` bytes."""
        tactic, posed = tactic_for(call, load.rows), problem(plan, call, load)
        key = (tactic, posed.key(), int(held))
        if key not in self._known:
            with torch.inference_mode():
                stage = Stage.of(posed, self.device, self.seed, _VALUES)
                run = stage.call(registry.tactic(call.op, tactic), int(held))
                timing = time_calls(run, self.device, samples=_SAMPLES, budget_s=_BUDGET_S)
            self._known[key] = min(timing.samples)
        return self._known[key]


def tactic_for(call: Call, rows: int) -> str:
    """The tactic that serves so many rows."""
    return next(name for bound, name in call.tactics if bound is None or rows <= bound)
