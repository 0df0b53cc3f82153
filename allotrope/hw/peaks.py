"""The ceilings: how fast this machine can read memory and multiply matrices, measured once and kept.

Every speed that Allotrope prints stands beside the least time that these two allow. What is measured is
a stream of reads (a sum over a buffer far larger than the caches), since decoding reads weights and
writes next to nothing, and a large square matrix product per dtype. A model that fits the last-level cache
is not read from memory at all: on a CPU the same sum over smaller buffers says how fast they are read again.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from allotrope import settings
from allotrope.hw.detect import last_level_cache
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint
from allotrope.hw.timer import time_calls

INT8 = "int8"
"""The name of the rate of integer products: multiplications and additions a second, counted as flops are."""
_SCHEMA = 1
Product = Callable[[int], object]  # called with how often it has been
_SMALL = 256  # rows and columns of a product that is quick whoever multiplies
_CACHED = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4)  # buffers, in last-level caches


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device, with the spread of each as a share of it."""

    read_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]
    spread: dict[str, float]
    threads: int
    measured_at: str
    cache_read_bytes_per_s: dict[str, float] = field(default_factory=dict)  # by the buffer's bytes, as text

    def floor_s(self, bytes_moved: float, flops: float, dtype: str, held: float = math.inf) -> float:
        """The least time for an op that moves `bytes_moved` and computes `flops`.

        `held` is how much is read between two visits to the same byte: little enough, and a cache keeps it.
        """
        return max(bytes_moved / self.read_rate(held), flops / self.rate(dtype))

    def rate(self, dtype: str) -> float:
        """Operations a second of products in `dtype`: no fewer than in fp32, which anything can be widened to."""
        rates = self.matmul_flops_per_s
        widest = max(rate for name, rate in rates.items() if name != INT8)
        return max(rates.get(dtype, widest), rates.get("fp32", 0.0))

    def read_rate(self, held: float = math.inf) -> float:
        """Bytes per second of what is read over and over, `held` bytes of it; between two measured sizes, linear."""
        known = sorted((int(size), rate) for size, rate in self.cache_read_bytes_per_s.items())
        if not known or held >= known[-1][0]:
            return self.read_bytes_per_s
        place = bisect.bisect_right(known, held, key=lambda one: one[0])
        (low, slow), (high, fast) = known[max(place - 1, 0)], known[place]
        share = 0.0 if high == low else max((held - low) / (high - low), 0.0)
        return max(slow + share * (fast - slow), self.read_bytes_per_s)


def _path(device: Device) -> Path:
    facts = fingerprint(device)
    key = "-".join([facts.hard["device"], facts.hard["arch"], facts.soft["name"], facts.soft["cores"]])
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in key)
    return settings.cache_dir() / "ceilings" / f"{safe}.json"


def load(device: Device) -> Ceilings | None:
    """The kept ceilings of `device`, or None if they were never measured (or are unreadable)."""
    try:
        data = json.loads(_path(device).read_text(encoding="utf-8"))
        return Ceilings(**data["ceilings"]) if data.get("schema") == _SCHEMA else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # a cache: damaged is the same as absent, and `doctor --measure` writes it anew


def keep(device: Device, ceilings: Ceilings) -> bool:
    """Keep them for later; False where the cache cannot be written."""
    path = _path(device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"schema": _SCHEMA, "ceilings": asdict(ceilings)}, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError:
        return False
    return True


def measure(device: Device, *, budget_s: float = 2.0) -> Ceilings:
    """Measure the ceilings: a few seconds on a CPU, less on a GPU."""
    import torch

    on_gpu = device.kind == "cuda"
    # several times any last-level cache, yet well within any machine that runs a language model
    count = (1 << 32 if on_gpu else 1 << 29) // 4
    source = torch.randn(1 << 20, device=device.torch_name).repeat(count >> 20)

    def read_all(_: int) -> object:
        return source.sum()

    timing = time_calls(read_all, device, samples=15, min_sample_s=0.02, budget_s=budget_s)
    # A ceiling is the best that was seen: other processes only ever subtract from it.
    read = 4 * count / min(timing.samples)
    spread = {"read": timing.spread / timing.median}
    rates: dict[str, float] = {}
    size = 8192 if on_gpu else 1024
    for dtype in ("fp32", "fp16", "bf16") if on_gpu else ("fp32", "bf16"):
        kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
        product = functools.partial(_product, kind, device)
        rates[dtype], spread[f"matmul_{dtype}"] = _rate(product, size, device, budget_s)
    cached = dict[str, float]()
    if not on_gpu:
        rates[INT8], spread[f"matmul_{INT8}"] = _rate(_integer_product, 2048, device, budget_s)
        cached = _cache_rates(device, source, budget_s)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Ceilings(read, rates, spread, torch.get_num_threads(), stamp, cached)


def _rate(product: Callable[[int], Product], size: int, device: Device, budget_s: float) -> tuple[float, float]:
    """Operations a second of a square product, and the spread.

    On CPUs without instructions for a dtype torch multiplies it number by number. Where one product of that size would
    take longer than all may take, a small one says enough.
    """
    timing = time_calls(product(_SMALL), device, samples=3) if device.kind == "cpu" else None
    if timing is not None and min(timing.samples) * (size / _SMALL) ** 3 > budget_s:
        size = _SMALL
    else:
        timing = time_calls(product(size), device, samples=9, budget_s=budget_s)
    return 2.0 * size**3 / min(timing.samples), timing.spread / timing.median


def _product(kind: Any, device: Device, size: int) -> Product:
    import torch

    a, b = (torch.randn(size, size, device=device.torch_name).to(kind) for _ in range(2))
    return functools.partial(_multiply, a, b, torch.empty_like(a))


def _integer_product(size: int) -> Product:
    """Of int8, by VNNI where the CPU has it."""
    import torch

    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8) for _ in range(2))
    return lambda _: torch._int_mm(a, b)


def _cache_rates(device: Device, source: Any, budget_s: float) -> dict[str, float]:
    """How fast a buffer is read again, by its size, around that of the last-level cache; nothing if that is unknown."""
    found, cache = dict[str, float](), last_level_cache()
    for share in _CACHED if cache else ():
        part = source[: int(cache * share) // 4]
        if part.numel() == source.numel():
            break  # no cache is kept apart from memory by a buffer of this size
        timing = time_calls(
            functools.partial(_sum, part), device, samples=15, min_sample_s=0.01, budget_s=budget_s / len(_CACHED)
        )
        found[str(4 * part.numel())] = 4 * part.numel() / min(timing.samples)
    return found


def _sum(values: Any, _: int) -> None:
    values.sum()


def _multiply(a: Any, b: Any, out: Any, _: int) -> None:
    import torch

    torch.mm(a, b, out=out)
