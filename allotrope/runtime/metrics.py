"""What the runtime counts, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Counters since the start; the first six are what there is now."""

    waiting: int = 0  # requests in the queue
    running: int = 0  # requests that hold a slot
    in_flight: int = 0  # steps launched and not read
    pages_free: int = 0
    pages_used: int = 0  # held by requests
    pages_cached: int = 0  # held by nobody, kept for whoever begins with the same tokens
    steps: int = 0
    prompt_tokens: int = 0  # of the requests that have begun to answer
    computed_tokens: int = 0  # positions that steps computed: less than asked by cached ones, more by preemptions
    output_tokens: int = 0
    prefix_query_tokens: int = 0  # tokens looked up in the prefix cache
    prefix_hit_tokens: int = 0  # and found
    preemptions: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # requests by finish_reason
