"""Quantising a model on calibration tokens: its blocks streamed from the checkpoint, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.models.model import Model
from allotrope.quant.calibrate import Made, Narrower, Runs, Streams, effective
from allotrope.quant.finished import Finished
from allotrope.quant.formats import dequantise
from allotrope.quant.narrow import wide_weight
from allotrope.quant.narrowed import Gathered, Narrowed
from allotrope.quant.policy import Policy, linears
from allotrope.quant.rounding import round_to_nearest

_TOKENS = 2048  # of a batch


@dataclass(frozen=True)
class Calibration:
    """Token ids [sequences, length], where they come from, and where finished blocks are kept meanwhile."""

    ids: torch.Tensor
    facts: Mapping[str, Any]
    folder: Path

    def batches(self) -> list[torch.Tensor]:
        """Some sequences at a time."""
        return list(self.ids.split(max(1, _TOKENS // self.ids.shape[1])))


@dataclass(frozen=True)
class Source:
    """A model, its plan as it was lowered, and what runs calls of that plan."""

    model: Model
    plan: Plan
    runs: Runs
    device: str

    def weights(self, calls: list[Call]) -> dict[str, torch.Tensor]:
        """All weights that these calls read."""
        slots = (plans.name(slot) for call in calls for slot in call.ins.values() if plans.kind(slot) == "w")
        return {slot: wide_weight(self.model, slot, self.device) for slot in dict.fromkeys(slots)}

    def embedded(self, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """The hidden states before the first block."""
        calls = [call for call in self.plan.calls if call.path.split(".")[0] == "embed"]
        weights = self.weights(calls)
        return [self.runs.run(calls, weights, {}, f"b:{self.plan.hidden}", ids=batch) for batch in batches]


def streamed(
    source: Source,
    policy: Policy,
    calibration: Calibration,
    folder: Path,
    *,
    smooth: bool,
    advance: Callable[[], None] = lambda: None,
) -> Narrowed:
    """The model by the policy. What is outside of the blocks is rounded to nearest."""
    began, gathered, chosen = time.perf_counter(), Gathered(folder), list[Mapping[str, Any]]()
    plan, formats = source.plan, policy.narrow
    streams = Streams(plan, source.runs, policy, source.embedded(calibration.batches()))
    narrower = Narrower(plan, policy, streams, smooth=smooth)
    slots = {call.path: plans.name(call.ins["weight"]) for call in linears(plan)}
    for name, calls in plan.blocks():
        if name.startswith("blocks."):
            done = _block(source, narrower, streams, calls, slots, policy, calibration.folder / f"{name}.npz")
            chosen += done.facts
            for slot, values in done.folded.items():
                gathered.fold(slot, values)
            for error in done.errors:
                gathered.keep(error, done.quantised[error.path])
        else:
            for path in [call.path for call in calls if call.path in formats]:
                weight = wide_weight(source.model, slots[path], source.device)
                gathered.add(path, weight, round_to_nearest(weight, formats[path], path))
        advance()
    for path, store in policy.stored.items():
        if slots[path] not in gathered:
            gathered.add_store(path, wide_weight(source.model, slots[path], source.device), store)
    told = {**calibration.facts, "smooth": smooth and policy.activations is not None, "groups": chosen}
    return gathered.finish(plan, policy, {"calibration": told, "seconds": round(time.perf_counter() - began, 3)})


def _block(
    source: Source,
    narrower: Narrower,
    streams: Streams,
    calls: list[Call],
    slots: Mapping[str, str],
    policy: Policy,
    file: Path,
) -> Finished:
    """One block, made now or before the last kill; the streams stand behind it."""
    wide = source.weights(calls)
    done = Finished.read(file, policy.narrow, source.device)
    if done is None:
        made: Made = narrower.block(calls, wide)
        done = Finished.of(made)
        done.write(file)
        streams.advance(calls, wide, effective(made, wide, slots))
    else:
        codes = {slots[path]: dequantise(one, torch.float32) for path, one in done.quantised.items()}
        streams.advance(calls, wide, {**wide, **done.folded, **codes})
    return done
