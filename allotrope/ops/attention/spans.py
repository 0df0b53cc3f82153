"""The host's copy of which rows belong to which request and where their keys lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Spans:
    """What `row_starts`, `row_first` and `page_table` hold, for tactics that plan on the host.

    Row `starts[r] + j` is request r's query at position `first[r] + j`. Every layer of a step gets the same
    object, so whoever derives something from it keeps that in `memo`, which lives as long as the step.
    """

    starts: Ints  # [R + 1]
    first: Ints  # [R]
    pages: Ints  # [R, P], −1 where there is no page
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def lengths(self) -> Ints:
        """[R] rows of each request."""
        return np.diff(self.starts)
