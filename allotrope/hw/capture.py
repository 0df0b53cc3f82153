"""CUDA graphs: what was launched once, launched again as a whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Graphs:
    """CUDA graphs that share one memory pool, since no two of them run at once."""

    def __init__(self) -> None:
        import torch

        self._pool = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Run `body` once, so that libraries have set themselves up, then capture it; returns what repeats it."""
        import torch

        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            body()
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                body()
            except BaseException:
                with suppress(
                    RuntimeError
                ):  # what went wrong has been said, and the capture says only that it was lost
                    graph.capture_end()
                raise
            graph.capture_end()
        here.wait_stream(self._stream)
        return graph.replay
