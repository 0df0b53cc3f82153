"""Quantising a model by a policy, one weight at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Plan
from allotrope.errors import UsageError
from allotrope.models.dtypes import cast
from allotrope.models.model import Model
from allotrope.quant.formats import Format
from allotrope.quant.held import repack
from allotrope.quant.narrowed import Gathered, Narrowed
from allotrope.quant.policy import AS_STORED, Policy, linears
from allotrope.quant.rounding import round_to_nearest


def narrow(
    model: Model, plan: Plan, policy: Policy, folder: Path, *, device: str, advance: Callable[[], None] = lambda: None
) -> Narrowed:
    """The model by the policy; what the checkpoint has in codes, as it is.

    `folder` keeps the codes until they are packed.
    """
    if policy.method not in ("nearest", AS_STORED):
        raise UsageError(f"--method {policy.method} needs calibration, which is not there yet")
    began, gathered = time.perf_counter(), Gathered(folder)
    for call in linears(plan):
        form = policy.formats[call.path]
        if form is None:
            continue
        slot = plans.name(call.ins["weight"])
        weight = wide_weight(model, slot, device)
        if isinstance(form, Format) and slot in model.quantised:
            made, order = repack(model.codes(slot), form)
            gathered.add(call.path, weight, made.to(device), order)
        elif isinstance(form, Format):
            gathered.add(call.path, weight, round_to_nearest(weight, form, call.path))
        else:
            gathered.add_store(call.path, weight, form)
        advance()
    return gathered.finish(plan, policy, {"seconds": round(time.perf_counter() - began, 3)})


def wide_weight(model: Model, slot: str, device: str) -> torch.Tensor:
    """A slot's weight in fp32, which holds every stored dtype exactly."""
    raw, stored = model.read(slot)
    return torch.from_numpy(cast(raw, stored, "fp32").copy()).to(device)
