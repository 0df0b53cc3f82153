"""What a step does, recorded once and repeated: a CUDA graph on a GPU, the same calls again on a CPU.

What is recorded reads and writes static memory alone, has no shape that depends on data and waits for nothing.
So everything but the capture itself can be tried without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from allotrope.errors import EngineError

Body = Callable[[], None]


class Recorder(Protocol):
    """Whatever makes a body repeatable; on a GPU `hw.capture.Graphs`."""

    def record(self, body: Body) -> Body:
        """Run `body` at least once, and give what repeats it. Its inputs must be in place and harmless."""
        ...


class Again:
    """Repeats by calling again."""

    def record(self, body: Body) -> Body:
        """Run it once, and return it."""
        body()
        return body


class Unread:
    """Stands where the host's record of a step would: what is recorded would look at one step's for ever."""

    def __getattr__(self, name: str) -> Any:
        raise EngineError(f"a tactic that says a graph may hold it read {name} on the host")
