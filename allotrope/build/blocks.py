"""Parts of a lowered plan run over whole sequences, with a tap on every call: what calibration needs of a runtime.

All sequences have one length, so that one step's arrays serve every batch. Between parts nothing is kept here but
those: who calls holds the hidden states, and hands in the weights of the part that runs. Everything is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.tactic import REFERENCE, Tactic
from allotrope.runtime.step import WANT_ALL, StepInput
from allotrope.runtime.step_tensors import step_arrays, to_device

_PAGE_SIZE = 16
_PREFERRED = {"attention": "torch_sdpa"}  # whole sequences; tactics with a row class take several times as long

Tensors = Mapping[str, torch.Tensor]
Tap = Callable[[Call, Tensors], torch.Tensor | None]
"""`tap(call, ins)` sees a linear's operands before it runs, and may give another `x`."""


class Blocks:
    """Runs the calls of a plan as it was lowered, some at a time, on `sequences` times `length` tokens."""

    def __init__(self, plan: Plan, device: Device, length: int) -> None:
        self.plan, self.length = replace(plan, dtype="fp32"), length
        self._device = device
        self._steps: dict[int, dict[str, torch.Tensor]] = {}
        self._caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._tactics: dict[tuple[str, str], Tactic] = {}

    @torch.inference_mode()
    def run(
        self,
        calls: Sequence[Call],
        weights: Tensors,
        given: Tensors,
        wanted: str,
        *,
        ids: torch.Tensor | None = None,
        tap: Tap | None = None,
    ) -> torch.Tensor:
        """One batch through `calls`: from the slots `given` to the slot `wanted`. Weights are by slot, without `w:`."""
        first = next(iter(given.values())) if ids is None else ids
        sequences = first.numel() // self.length if ids is not None else len(first) // self.length
        slots = {**self._step(sequences), **given}
        if ids is not None:
            slots["s:tokens"] = ids.reshape(-1).to(self._device.torch_name)
        for call in calls:
            self._call(call, weights, slots, sequences, tap)
        return slots[wanted]

    def _call(
        self, call: Call, weights: Tensors, slots: dict[str, torch.Tensor], sequences: int, tap: Tap | None
    ) -> None:
        ins = {
            operand: weights[plans.name(slot)] if plans.kind(slot) == "w" else self._slot(slot, slots, sequences)
            for operand, slot in call.ins.items()
        }
        if call.op == "linear":
            x = None if tap is None else tap(call, ins)
            slots[call.outs["out"]] = F.linear(ins["x"] if x is None else x, ins["weight"], ins.get("bias"))
            return
        rows = sequences * self.length
        outs = {}
        for operand, slot in call.outs.items():
            if plans.kind(slot) == "c":
                outs[operand] = ins[operand]
            else:
                width = self.plan.buffers[plans.name(slot)].width
                outs[operand] = torch.empty(rows, width, device=self._device.torch_name)
        contract = registry.contract(call.op)
        tactic = self._tactic(call, sequences)
        own = tactic.run(outs, ins, contract.complete(call.params), None)
        for operand, slot in call.outs.items():
            if plans.kind(slot) == "b":
                slots[slot] = outs[operand] if own is None else own.get(operand, outs[operand])

    def _slot(self, slot: str, slots: dict[str, torch.Tensor], sequences: int) -> torch.Tensor:
        """A cache is one for all layers: each writes its whole sequences before it reads them."""
        if plans.kind(slot) != "c":
            return slots[slot]
        if sequences not in self._caches:
            pages = sequences * -(-self.length // _PAGE_SIZE)
            shape = (pages, _PAGE_SIZE, self.plan.cache.kv_heads * self.plan.cache.head_dim)
            name = self._device.torch_name
            self._caches[sequences] = (torch.zeros(shape, device=name), torch.zeros(shape, device=name))
        return self._caches[sequences][slot.endswith(".v")]

    def _tactic(self, call: Call, sequences: int) -> Tactic:
        """The preferred tactic, else the first that can and needs no workspace, else the reference."""
        key = (call.op, repr(sorted(call.params.items())))
        if key not in self._tactics:
            load = Load(sequences * self.length, sequences, self.length, _PAGE_SIZE)
            posed = problem(self.plan, call, load)
            listed = sorted(registry.tactics(call.op), key=lambda tactic: tactic.name != _PREFERRED.get(call.op))
            fitting = (
                tactic
                for tactic in listed
                if not any(packing != "rows" for packing in tactic.packings().values())
                and tactic.why_not(posed, self._device) is None
                and not tactic.workspace(posed, self._device)
            )
            self._tactics[key] = next(fitting, registry.tactic(call.op, REFERENCE))
        return self._tactics[key]

    def _step(self, sequences: int) -> dict[str, torch.Tensor]:
        if sequences not in self._steps:
            arrays, _ = step_arrays(_step(sequences, self.length), _PAGE_SIZE)
            self._steps[sequences] = to_device(arrays, self._device.torch_name)
        return self._steps[sequences]


def _step(sequences: int, length: int) -> StepInput:
    """Whole sequences from their beginning, page after page."""
    pages, zeros = -(-length // _PAGE_SIZE), np.zeros(sequences, np.float32)
    return StepInput(
        slots=np.arange(sequences, dtype=np.int32),
        starts=(np.arange(sequences + 1) * length).astype(np.int32),
        first=np.zeros(sequences, np.int32),
        tokens=np.zeros(sequences * length, np.int32),
        pages=np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages),
        want=np.full(sequences, WANT_ALL, np.uint8),
        sample=np.zeros(sequences, np.bool_),
        prompt_lens=np.full(sequences, length, np.int32),
        temperature=zeros,
        top_k=np.zeros(sequences, np.int32),
        top_p=zeros + 1,
        min_p=zeros,
        seeds=np.zeros(sequences, np.int64),
        candidates=np.zeros(sequences, np.int32),
        page_copies=np.zeros((0, 2), np.int32),
    )
