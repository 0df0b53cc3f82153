"""The numbers of an attention call, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.kv_rows import COMPUTE, misfit


def misshapen(problem: Problem) -> str | None:
    """Why these numbers are no attention; None if they are."""
    params, axes = problem.params, problem.axes
    heads, kv_heads, head_dim = (int(params[name]) for name in ("heads", "kv_heads", "head_dim"))
    if heads % kv_heads:
        return f"{heads} heads cannot share {kv_heads} key heads evenly"
    if heads * head_dim != axes["width"]:
        return f"{heads} heads of {head_dim} do not make {axes['width']} channels"
    return misfit(str(params.get("kv", COMPUTE)), kv_heads, head_dim, axes["cache_width"])


def unsupported(problem: Problem, device: Device) -> str | None:
    """Why torch cannot attend with these numbers here; None if it can."""
    if device.kind not in ("cpu", "cuda"):
        return f"torch runs here on cpu and cuda, not on {device.kind}"
    return misshapen(problem)


@dataclass(frozen=True)
class Shape:
    """The numbers that a run needs again and again."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int
    kv: str  # how a cache's rows lie

    @staticmethod
    def of(params: Mapping[str, Scalar]) -> Shape:
        """From a call's parameters."""
        return Shape(
            heads=int(params["heads"]),
            kv_heads=int(params["kv_heads"]),
            head_dim=int(params["head_dim"]),
            scale=float(params["scale"]),
            window=int(params.get("window", 0)),
            kv=str(params.get("kv", COMPUTE)),
        )

    @property
    def narrow(self) -> bool:
        """Whether the caches' rows are bytes, to be decoded."""
        return self.kv != COMPUTE

    @property
    def group(self) -> int:
        """Heads that share a key head."""
        return self.heads // self.kv_heads
