"""Quantising a model on calibration tokens: its blocks streamed from the checkpoint, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.errors import BuildError
from allotrope.models.model import Model
from allotrope.quant.calibrate import Made, Narrower, Runs, Streams, Tap, effective, rounded_input, unseen
from allotrope.quant.columns import forget_recordings
from allotrope.quant.finished import Finished
from allotrope.quant.formats import Format, dequantise
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

    def file(self, block: str) -> Path:
        """Of a finished block."""
        return self.folder / f"{block}.npz"

    def batches(self) -> list[torch.Tensor]:
        """Some sequences at a time."""
        return list(torch.split(self.ids, max(1, _TOKENS // self.ids.shape[1])))


@dataclass(frozen=True)
class Source:
    """A model, its plan as it was lowered, and what runs calls of that plan."""

    model: Model
    plan: Plan
    runs: Runs
    device: str
    formats: Mapping[str, Format]  # of all layers that were narrowed

    def finished(self, calibration: Calibration, block: str) -> Finished:
        """A block's file, which has been written by now; of what is no block, nothing."""
        if not block.startswith("blocks."):
            return Finished({}, {}, {}, {}, (), ())
        found = Finished.read(calibration.file(block), self.formats, self.device)
        if found is None:
            remedy = "build again, once no other build with these options runs"
            raise BuildError("its calibrated codes have been removed meanwhile", where=block, remedy=remedy)
        return found

    def weights(self, calls: list[Call]) -> dict[str, torch.Tensor]:
        """All weights that these calls read."""
        slots = (plans.name(slot) for call in calls for slot in call.ins.values() if plans.kind(slot) == "w")
        return {slot: wide_weight(self.model, slot, self.device) for slot in dict.fromkeys(slots)}

    def outside(self, policy: Policy) -> dict[str, tuple[str, torch.Tensor]]:
        """For each narrow layer outside of the blocks its slot, and what its codes mean: they are the nearest."""
        slots, found = weight_slots(self.plan), dict[str, tuple[str, torch.Tensor]]()
        for path, form in policy.narrow.items():
            if not path.startswith("blocks."):
                codes = round_to_nearest(wide_weight(self.model, slots[path], self.device), form, path)
                found[path] = slots[path], dequantise(codes, torch.float32)
        return found

    def embedded(
        self, batches: list[torch.Tensor], narrow: Mapping[str, torch.Tensor] = MappingProxyType({}), tap: Tap = unseen
    ) -> list[torch.Tensor]:
        """The hidden states before the first block; `narrow` are other weights by slot, as of a table that is tied."""
        calls = [call for call in self.plan.calls if call.path.split(".")[0] == "embed"]
        weights, hidden = self.weights(calls), f"b:{self.plan.hidden}"
        weights |= {slot: values for slot, values in narrow.items() if slot in weights}
        return [self.runs.run(calls, weights, {}, hidden, ids=batch, tap=tap) for batch in batches]


def streamed(
    source: Source,
    policy: Policy,
    calibration: Calibration,
    *,
    smooth: bool,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Narrow every block by the policy, each into its file in the calibration's folder."""
    batches, outside = calibration.batches(), dict(source.outside(policy).values())
    narrow = source.embedded(batches, outside, rounded_input(policy)) if outside else None
    streams = Streams(source.plan, source.runs, policy, source.embedded(batches), narrow)
    narrower = Narrower(source.plan, policy, streams, smooth=smooth)
    slots = weight_slots(source.plan)
    try:
        for name, calls in source.plan.blocks():
            if name.startswith("blocks."):
                _block(source, narrower, streams, calls, slots, policy, calibration.file(name))
            advance()
    finally:
        forget_recordings()


def gathered(
    source: Source, plan: Plan, policy: Policy, calibration: Calibration, folder: Path, facts: Mapping[str, Any]
) -> Narrowed:
    """The model by the policy, out of the blocks' files; a layer that the policy has widened since is taken wide.

    `plan` may keep its cache otherwise than the source's. What is outside of the blocks is rounded to nearest.
    """
    found, chosen = Gathered(folder), list[Mapping[str, Any]]()
    slots, narrow = weight_slots(source.plan), policy.narrow
    for name, calls in source.plan.blocks():
        done = source.finished(calibration, name)
        for slot, values in done.folded.items():
            found.fold(slot, values)
        for error in done.errors:
            if error.path in narrow:
                found.keep(error, done.quantised[error.path])
            elif error.path in done.columns or error.path in done.rows:
                weight = wide_weight(source.model, slots[error.path], source.device)
                found.fold(slots[error.path], done.balanced(error.path, weight))
        for path in [call.path for call in calls if call.path in narrow and call.path not in done.quantised]:
            weight = wide_weight(source.model, slots[path], source.device)
            found.add(path, weight, round_to_nearest(weight, narrow[path], path))
        chosen += done.facts
    for path, store in policy.stored.items():
        folded = found.folded(slots[path])
        found.add_store(
            path, wide_weight(source.model, slots[path], source.device) if folded is None else folded, store
        )
    return found.finish(plan, policy, {"calibration": {**calibration.facts, "groups": chosen}, **facts})


def weight_slots(plan: Plan) -> dict[str, str]:
    """Each linear layer's weight."""
    return {call.path: plans.name(call.ins["weight"]) for call in linears(plan)}


def _block(
    source: Source,
    narrower: Narrower,
    streams: Streams,
    calls: list[Call],
    slots: Mapping[str, str],
    policy: Policy,
    file: Path,
) -> None:
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
