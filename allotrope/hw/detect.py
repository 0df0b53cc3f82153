"""Find out what we run on. Only this and `cores` ask the operating system or the driver."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.hw import cores
from allotrope.hw.device import Device

KINDS = ("auto", "cpu", "cuda")
# CPU features that decide which kernels can run, and may decide which one a library picks.
_FEATURES = (
    "amx_bf16",
    "amx_int8",
    "asimd",
    "avx2",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx512f",
    "avx_vnni",
    "f16c",
    "fma",
    "i8mm",
)


def detect(kind: str = "auto") -> Device:
    """The device that `kind` names. `auto` is the GPU where torch sees one, else the CPU."""
    if kind not in KINDS:
        raise UsageError(f"no device {kind!r}", remedy=f"choose one of {', '.join(KINDS)}")
    if kind == "cpu" or (kind == "auto" and not _may_have_gpu()):
        return _cpu()
    problem = _why_no_cuda()
    if problem is None:
        return _cuda()
    if kind == "cuda":
        raise UsageError(
            f"no CUDA device: {problem}", remedy="use --device cpu, or install the driver and torch for CUDA"
        )
    return _cpu()


def available_memory() -> int:
    """Bytes of main memory that a new allocation can expect to get; cgroup's and the process's limits included."""
    free = _meminfo().get("MemAvailable", 0)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdigit():
            free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        free = min(free, most - pages * resource.getpagesize())
    return max(free, 0)


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core shares in; 0 where the system does not say."""
    found = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:])
        if unit and text[:-1].isdigit():
            found = max(found, int(text[:-1]) * unit)
    return found


def _may_have_gpu() -> bool:
    """A cheap look, so that CPU-only machines need not import torch to find no GPU."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists()


def _why_no_cuda() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "torch sees none (no GPU, or a driver older than torch's CUDA)"
    return None


def _cuda() -> Device:
    import torch

    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    arch = f"sm_{facts.major}{facts.minor}"
    return Device("cuda", facts.name, arch, facts.multi_processor_count, facts.total_memory)


def _cpu() -> Device:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = tuple(sorted(flags & set(_FEATURES)))
    machine = platform.machine()
    widest = next((name for name in ("avx512f", "avx2", "asimd") if name in features), "scalar")
    name = fields.get("model name") or platform.processor() or machine
    return Device("cpu", name, f"{machine}-{widest}", cores.usable().count, _meminfo().get("MemTotal", 0), features)


def _meminfo() -> dict[str, int]:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return {}
    rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}
