"""The facts about a device that decide which tactics may run on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device. `arch` and `features` change results or support; the rest informs."""

    kind: str  # "cpu" or "cuda"
    name: str
    arch: str  # "x86_64-avx512vnni", "sm_90"
    cores: int  # CPU cores that we may use, or multiprocessors
    memory_bytes: int
    features: tuple[str, ...] = ()  # "avx2", "avx512_vnni", "amx_int8", …; sorted

    @property
    def torch_name(self) -> str:
        """What torch calls it."""
        return self.kind
