"""What may be chosen wherever an engine runs, checked at birth; sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from allotrope.errors import OutOfMemory, UsageError
from allotrope.runtime.bounds import show
from allotrope.units import shortage

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def parse_size(name: str, value: Any) -> int:
    """Bytes: a whole number, or text like 2GiB, 512M, 1.5GB (K, M, G, T and KiB… are powers of 1024)."""
    if not isinstance(value, bool) and isinstance(value, Integral) and 0 < int(value) < 2**60:
        return int(value)
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", value) if isinstance(value, str) else None
    unit = (
        None if found is None else next((size for text, size in _UNITS.items() if text.lower() == found[2].lower()), 0)
    )
    if found is None or not unit or not 1 <= float(found[1]) * unit < 2**60:
        raise UsageError(f"{name} is {show(value)}", remedy="give a size such as 2GiB, 512MiB or a number of bytes")
    return int(float(found[1]) * unit)


POLICIES = ("fcfs", "priority")
EXECUTORS = ("auto", "native", "eager", "graph")
MOST_IN_FLIGHT = 32  # steps launched and not read, whatever check_step and skip_step say
_WHOLE = {
    "threads": (1, 1024),
    "max_num_seqs": (1, 4096),
    "max_batched_tokens": (1, 2**20),
    "page_size": (1, 4096),
    "max_len": (1, 2**24),
    "skip_step": (0, 2**20),
    "check_step": (1, MOST_IN_FLIGHT),
}


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine is run. What is None or auto is settled when the engine is known."""

    device: str = "auto"  # auto: the one that the engine was built for
    executor: str = "auto"  # auto: on a CPU native, on a GPU graph, where the plan allows it; else eager
    threads: int | None = None  # CPU threads; None: the CPUs that we may use, or torch's choice
    max_num_seqs: int = 32  # the most requests that run at once
    max_batched_tokens: int = 2048  # the most tokens in a step
    page_size: int = 16  # tokens per KV page
    kv_memory: int | None = (
        None  # bytes for the KV pool; None: as much as could be used, within a share of what is free
    )
    max_len: int | None = None  # prompt and output together; None: the engine's
    policy: str = "fcfs"  # who is served first: first come, or the lowest `priority` and then first come
    prefix_cache: bool = True  # pages of prompts seen before are used again
    skip_step: int = 0  # so many steps after an idle moment are launched before any is looked at
    check_step: int = 1  # and after them every so many; see `Loop`

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in ("threads", "max_len"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
                raise UsageError(f"{name} is {show(value)}; it must be a whole number from {least} to {most}")
            object.__setattr__(self, name, int(value))
        for name, known in (("policy", POLICIES), ("executor", EXECUTORS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if not isinstance(self.prefix_cache, bool):
            raise UsageError(f"prefix_cache is {self.prefix_cache!r}; it must be True or False")
        if self.kv_memory is not None:
            object.__setattr__(self, "kv_memory", parse_size("kv_memory", self.kv_memory))

    def length(self, engine_max: int) -> int:
        """The longest sequence to serve, given the engine's own limit."""
        if self.max_len is not None and self.max_len > engine_max:
            raise UsageError(f"max_len is {self.max_len}; the engine's limit is {engine_max}")
        return self.max_len or engine_max

    def pages(self, max_len: int, page_bytes: int, available: int, share: float) -> int:
        """How many KV pages to make: never more than can be used, nor than fit into memory.

        With a prefix cache all memory that was asked for by name can be used.
        """
        budget = int(available * share) if self.kv_memory is None else self.kv_memory
        pages = budget // page_bytes
        if self.kv_memory is None or not self.prefix_cache:
            pages = min(pages, self.max_num_seqs * -(-max_len // self.page_size))
        if pages < 1 or pages * page_bytes > available:
            needed = max(pages, 1) * page_bytes
            raise OutOfMemory(
                f"the KV pool needs {shortage(needed, min(budget, available))}",
                remedy="lower kv_memory, page_size or max_num_seqs" if pages else "raise kv_memory or lower page_size",
            )
        return pages
