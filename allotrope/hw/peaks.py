"""The ceilings: how fast this machine can read memory and multiply matrices, measured once and kept.

Every speed that Allotrope prints stands beside the least time that these two allow. What is measured is
a stream of reads (a sum over a buffer far larger than the caches), since decoding reads weights and
writes next to nothing, and a large square matrix product per dtype.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allotrope import settings
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import fingerprint
from allotrope.hw.timer import time_calls

_SCHEMA = 1


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device, with the spread of each as a share of it."""

    read_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]
    spread: dict[str, float]
    threads: int
    measured_at: str

    def floor_s(self, bytes_moved: float, flops: float, dtype: str) -> float:
        """The least time for an op that moves `bytes_moved` and computes `flops`."""
        rate = self.matmul_flops_per_s.get(dtype) or max(self.matmul_flops_per_s.values())
        return max(bytes_moved / self.read_bytes_per_s, flops / rate)


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
        a = torch.randn(size, size, device=device.torch_name).to(kind)
        b = torch.randn(size, size, device=device.torch_name).to(kind)
        multiply = functools.partial(_multiply, a, b, torch.empty_like(a))
        timing = time_calls(multiply, device, samples=9, budget_s=budget_s)
        rates[dtype] = 2.0 * size**3 / min(timing.samples)
        spread[f"matmul_{dtype}"] = timing.spread / timing.median
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Ceilings(read, rates, spread, torch.get_num_threads(), stamp)


def _multiply(a: Any, b: Any, out: Any, _: int) -> None:
    import torch

    torch.mm(a, b, out=out)
