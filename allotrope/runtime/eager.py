"""The eager executor: a plan's tactics called one by one from Python, on any device.

What can be settled is settled at load: which tactic object serves which row count, which weight view it
reads, how much workspace the largest step needs. A step then only slices buffers and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from allotrope.artifact import plan as plans
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.errors import EngineError, UsageError
from allotrope.hw.device import Device
from allotrope.ops import registry
from allotrope.ops.contract import Array, Scalar
from allotrope.ops.tactic import Tactic
from allotrope.runtime.buffers import Buffers, allocate, fill_poison, make_caches
from allotrope.runtime.request import Candidates
from allotrope.runtime.step import StepInput, StepOutput
from allotrope.runtime.step_tensors import logit_ranges, step_arrays, to_device
from allotrope.runtime.weights import Engine, Weights

if TYPE_CHECKING:
    import torch

Tap = Callable[[Call, dict[str, Array]], None]
_ALIGN = 64


@dataclass(frozen=True)
class _Choice:
    """One tactic of a call: up to how many rows it serves, and the weights as it reads them."""

    bound: int | None
    tactic: Tactic
    weights: Mapping[str, Array]


@dataclass
class _Bound:
    """A call with everything resolved that does not change from step to step."""

    call: Call
    rows: str  # TOKENS, LOGITS or SAMPLES
    params: Mapping[str, Scalar]
    choices: tuple[_Choice, ...]
    ins: tuple[tuple[str, str], ...]  # operand and slot; weights are in the choices
    outs: tuple[tuple[str, str], ...]
    needs: dict[str, int] = field(default_factory=dict)  # tactic → workspace bytes for its largest rows

    def choice_for(self, rows: int) -> _Choice:
        """The choice for this many rows; the last one has no bound."""
        for choice in self.choices:
            if choice.bound is None or rows <= choice.bound:
                return choice
        raise EngineError(f"no tactic for {rows} rows", where=self.call.path)


class EagerExecutor:
    """Runs steps of an engine, or with `plan=` of another plan over the same engine's weights.

    Making one sets torch for the process: matrix products in true fp32 (no TF32), no reductions in fp16
    or bf16, and with `threads` that many CPU threads. `poison` fills memory with NaN before it is used, for tests;
    `drop_resident` lets go of the weights' pages after each call that read some, for little memory.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        device: Device,
        pages: int,
        page_size: int,
        max_tokens: int,
        max_requests: int = 1,
        plan: Plan | None = None,
        threads: int | None = None,
        poison: bool = False,
        drop_resident: bool = False,
    ) -> None:
        settle_torch(threads)
        self.plan = plan or engine.manifest.plan
        self.page_size, self.pages = page_size, pages
        self._engine, self._device, self._drop_resident, self._poison = engine, device, drop_resident, poison
        weights = Weights(engine, device.torch_name)
        self._calls = [self._bind(call, weights) for call in self.plan.calls]
        self._caches = make_caches(self.plan, pages, page_size, device.torch_name, poison)
        self._buffers = Buffers(self.plan, device.torch_name, poison)
        self._workspace: torch.Tensor | None = None
        sample = next(call for call in self.plan.calls if call.op == "sample")
        self._logits = sample.ins["logits"]
        self._tokens, self._logprobs = sample.outs["tokens"], sample.outs["logprobs"]
        self._reserve({TOKENS: max_tokens, LOGITS: max_requests, SAMPLES: max_requests})

    def run(self, step: StepInput, tap: Tap | None = None) -> StepOutput:
        """Compute one step. `tap(call, outs)` sees each call's outputs just made, and may overwrite them."""
        import torch

        if not self._calls:
            raise UsageError("the engine has been closed", remedy="open it again")
        arrays, rows = step_arrays(step, self.page_size)
        self._reserve(rows)  # outside of inference mode, so that callers may write into what they are given
        with torch.inference_mode():
            slots = to_device(arrays, self._device.torch_name) | self._buffers.views(rows) | self._caches
            self._begin(step)
            for bound in self._calls:
                count = rows[bound.rows]
                if not count:
                    continue
                choice = bound.choice_for(count)
                ins = dict(choice.weights)
                for operand, slot in bound.ins:
                    ins[operand] = slots[slot]
                outs = {operand: slots[slot] for operand, slot in bound.outs}
                workspace = self._workspace if bound.needs[choice.tactic.name] else None
                choice.tactic.run(outs, ins, bound.params, workspace)
                if tap is not None:
                    tap(bound.call, outs)
                if self._drop_resident and choice.weights:
                    self._engine.forget()
            return self._output(step, slots)

    def close(self) -> None:
        """Let go of all memory. The executor is of no use afterwards."""
        self._calls, self._caches, self._workspace = [], {}, None
        self._buffers = Buffers(self.plan, self._device.torch_name, poison=False)
        if self._device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()  # back to the driver, not only to torch

    def _bind(self, call: Call, weights: Weights) -> _Bound:
        contract = registry.contract(call.op)
        weighed = {operand: slot for operand, slot in call.ins.items() if plans.kind(slot) == "w"}
        choices = []
        for bound, name in call.tactics:
            tactic = registry.tactic(call.op, name)
            packings = tactic.packings()
            given = {
                operand: weights.get(
                    plans.name(slot), self.plan.weights[plans.name(slot)], packings.get(operand, "rows")
                )
                for operand, slot in weighed.items()
            }
            choices.append(_Choice(bound, tactic, given))
        return _Bound(
            call=call,
            rows=self._rows_of(call),
            params=contract.complete(call.params),
            choices=tuple(choices),
            ins=tuple((operand, slot) for operand, slot in call.ins.items() if operand not in weighed),
            outs=tuple(call.outs.items()),
        )

    def _rows_of(self, call: Call) -> str:
        """Which kind of rows the call has: that of a buffer whose first axis its contract counts rows over."""
        contract = registry.contract(call.op)
        for operands, slots in ((contract.outs, call.outs), (contract.ins, call.ins)):
            for operand, slot in slots.items():
                if plans.kind(slot) == "b" and operands[operand].axes[0] == contract.rows:
                    return self.plan.buffers[plans.name(slot)].rows
        raise EngineError(f"no buffer of op {call.op} has rows", where=call.path)

    def _reserve(self, rows: Mapping[str, int]) -> None:
        """Make room for a step of this size; grows buffers and workspace if it is the largest yet."""
        if not self._buffers.reserve(rows):
            return
        known: dict[tuple[str, str], int] = {}
        for bound in self._calls:
            for choice in bound.choices:
                most = self._buffers.capacity[bound.rows]
                size = min(most, choice.bound or most)
                bound.needs[choice.tactic.name] = self._workspace_of(bound.call, choice.tactic, size, known)
        needed = max(known.values(), default=0)
        if needed > (0 if self._workspace is None else self._workspace.numel()):
            import torch

            self._workspace = None
            size = -(-needed // _ALIGN) * _ALIGN
            self._workspace = allocate("workspaces", (size,), torch.uint8, self._device.torch_name, self._poison)

    def _workspace_of(self, call: Call, tactic: Tactic, rows: int, known: dict[tuple[str, str], int]) -> int:
        """Bytes for the largest step; a tactic that cannot serve it here is fatal, not a fall-back."""
        context = min(self.plan.max_len, self.pages * self.page_size)
        requests = min(rows, max(self._buffers.capacity[SAMPLES], 1))
        load = Load(rows, requests, context, self.page_size, self.pages)
        posed = problem(self.plan, call, load)
        key = (tactic.name, posed.key())
        if key not in known:
            reason = tactic.why_not(posed, self._device)
            if reason is not None:
                raise EngineError(
                    f"the planned tactic {tactic.name} cannot run here: {reason}",
                    where=call.path,
                    remedy="rebuild the engine here with: allotrope build",
                )
            known[key] = tactic.workspace(posed, self._device)
        return known[key]

    def _begin(self, step: StepInput) -> None:
        """Copy the pages that the step wants copied; what the last step left in the workspace must not matter."""
        if len(step.page_copies):
            import torch

            source, target = torch.from_numpy(step.page_copies.T.astype(np.int64)).to(self._device.torch_name)
            for cache in self._caches.values():
                cache[target] = cache[source]
        if self._poison and self._workspace is not None:
            fill_poison(self._workspace)

    def _output(self, step: StepInput, slots: Mapping[str, Any]) -> StepOutput:
        """Bring home what was drawn. The first transfer waits for the device; it is the step's only wait."""
        import torch

        logits = slots[self._logits]
        # One pass over the logits: a row's sum is finite only if all of it is.
        sums = logits.sum(-1, dtype=torch.float32).isfinite().cpu().numpy()
        finite = np.ones(step.rows, np.bool_)
        candidates: tuple[Candidates, ...] = ((),) * step.rows
        if not sums.all():
            finite[:] = [bool(sums[start:end].all()) for start, end in logit_ranges(step)]
        if step.candidates.any():
            candidates = tuple(
                _likeliest(logits[end - 1], int(count)) if count and draws and well else ()
                for count, draws, well, (_, end) in zip(
                    step.candidates, step.sample, finite, logit_ranges(step), strict=True
                )
            )
        tokens = np.full(step.rows, -1, np.int32)
        logprobs = np.full(step.rows, np.nan, np.float32)
        if step.sample.any():
            tokens[step.sample] = slots[self._tokens].reshape(-1).cpu().numpy()
            logprobs[step.sample] = slots[self._logprobs].reshape(-1).cpu().numpy()
        return StepOutput(tokens, logprobs, candidates, finite, logits)


def _likeliest(logits: torch.Tensor, count: int) -> Candidates:
    """The `count` likeliest tokens, row by row: what others ask for must not decide ties."""
    values, tokens = logits.float().log_softmax(-1).topk(min(count, logits.numel()))
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))


def settle_torch(threads: int | None) -> None:
    """Set torch for the process: true fp32, no reductions in 16 bits, so many CPU threads."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if threads is not None:
        torch.set_num_threads(threads)
