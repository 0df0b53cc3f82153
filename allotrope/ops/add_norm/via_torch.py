"""The sum and the norm with torch: a kernel each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.add_norm import NORMS
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic


def _refuses(problem: Problem, device: Device) -> str | None:
    norm = problem.params.get("norm")
    return None if norm in NORMS else f"there is no norm {norm!r}, only {' and '.join(NORMS)}"


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> Mapping[str, Tensor]:
    torch.add(ins["residual"], ins["x"], out=out["out"])
    given = {"x": out["out"]} | {name: ins[name] for name in ("weight", "bias") if name in ins}
    norm = registry.tactic(f"{params['norm']}norm", "torch")
    made = norm.run({"out": out["normed"]}, given, {"eps": params["eps"], "heads": 1}, None)
    return {"normed": (made or {"out": out["normed"]})["out"]}


def _mixes(problem: Problem, device: Device) -> str | None:
    if device.kind == "cpu" and problem.params.get("norm") == "rms":
        return "torch's own RMS norm may split the sum of a single long row over its threads"
    return None


TACTICS = (FunctionTactic("add_norm", "torch", _run, {"weight": "rows", "bias": "rows"}, _refuses, _mixes),)
