"""An executor that is looked over the shoulder: what its steps held."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from allotrope.runtime.step import WANT_ALL, WANT_LAST, Executor, Ints, Pending, StepInput


@dataclass(frozen=True)
class Step:
    """What one step held, as far as its cost goes; the fields are those of its input."""

    starts: Ints
    first: Ints
    want: npt.NDArray[np.uint8]
    sample: npt.NDArray[np.bool_]

    @property
    def counts(self) -> Ints:
        """[R] tokens of each request."""
        return np.diff(self.starts)

    @property
    def ends(self) -> Ints:
        """[R] keys that each request's last token sees."""
        return self.first + self.counts

    @property
    def logits(self) -> int:
        """Rows whose logits were wanted."""
        return int(self.counts[self.want == WANT_ALL].sum()) + int(np.count_nonzero(self.want == WANT_LAST))

    @property
    def samples(self) -> int:
        """Tokens drawn."""
        return int(np.count_nonzero(self.sample))


@dataclass
class Watched:
    """Hands every step on to `executor` and keeps what its cost depends on."""

    executor: Executor
    steps: list[Step] = field(default_factory=list)
    can_repeat = False  # every step is to be seen

    def launch(self, step: StepInput) -> Pending:
        """Launch it."""
        self.steps.append(Step(step.starts, step.first, step.want, step.sample))
        return self.executor.launch(step)
