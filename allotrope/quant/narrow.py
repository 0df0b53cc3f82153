"""Quantising a model by a policy, one weight at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Plan
from allotrope.models.dtypes import cast
from allotrope.models.model import Model
from allotrope.quant.narrowed import Gathered, Narrowed
from allotrope.quant.policy import Policy, linears
from allotrope.quant.rounding import round_to_nearest


def narrow(
    model: Model, plan: Plan, policy: Policy, folder: Path, *, device: str, advance: Callable[[], None] = lambda: None
) -> Narrowed:
    """The model by the policy, every code the nearest. `folder` keeps the codes until they are packed."""
    began, gathered, formats = time.perf_counter(), Gathered(folder), policy.narrow
    for call in linears(plan):
        if call.path in formats:
            weight = wide_weight(model, plans.name(call.ins["weight"]), device)
            gathered.add(call.path, weight, round_to_nearest(weight, formats[call.path], call.path))
            advance()
    seconds = round(time.perf_counter() - began, 3)
    return gathered.finish(plan, policy, {"method": "nearest", "seconds": seconds})


def wide_weight(model: Model, slot: str, device: str) -> torch.Tensor:
    """A slot's weight in fp32, which holds every stored dtype exactly."""
    raw, stored = model.read(slot)
    return torch.from_numpy(cast(raw, stored, "fp32").copy()).to(device)
