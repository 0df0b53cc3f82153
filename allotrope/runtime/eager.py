"""The eager executor: a plan's tactics called one by one from Python, on any device.

What can be settled is settled at load: which tactic object serves which row count, which weight view it
reads, how much workspace the largest step needs. A step then only slices buffers and calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from allotrope import native
from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Call, Plan
from allotrope.artifact.problems import Load
from allotrope.errors import EngineError, UsageError
from allotrope.hw.device import Device
from allotrope.ops.contract import Array
from allotrope.ops.sample import ADJUSTMENTS
from allotrope.runtime.buffers import Buffers, allocate, fill_poison, make_caches, torch_dtype
from allotrope.runtime.call_clock import CallClock
from allotrope.runtime.program import After, Program, Tap
from allotrope.runtime.results import Clock, Results
from allotrope.runtime.step import LAST_DRAWN, Pending, StepInput, StepOutput
from allotrope.runtime.step_tensors import promises, step_arrays, to_device
from allotrope.runtime.weights import Engine, Weights

if TYPE_CHECKING:
    import torch


class EagerExecutor:
    """Runs steps of an engine, or with `plan=` of another plan over the same engine's weights.

    Making one sets torch for the process: matrix products in true fp32 (no TF32), no reductions in fp16
    or bf16, and with `threads` that many CPU threads. `poison` fills memory with NaN before it is used, for tests;
    `drop_resident` lets go of the weights' pages after each call that read some, for little memory. `timed` notes
    how long each call of a step takes.
    """

    can_repeat = False  # on a GPU steps overlap anyway; on a CPU the calls themselves are what Python costs

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
        timed: bool = False,
    ) -> None:
        settle_torch(threads)
        self.plan = plan or engine.manifest.plan
        self.page_size, self.pages = page_size, pages
        self._engine, self._device, self._drop_resident, self._poison = engine, device, drop_resident, poison
        weights = Weights(engine, device.torch_name)
        self.program: Program | None = Program(self.plan, weights, device)
        self._caches = make_caches(self.plan, pages, page_size, device.torch_name, poison)
        self._buffers = Buffers(self.plan, device.torch_name, poison)
        self._workspace: torch.Tensor | None = None
        self._short = True
        sample = next(call for call in self.plan.calls if call.op == "sample")
        self._logits = sample.ins["logits"]
        self._sampled = sample.outs
        if not set(ADJUSTMENTS) <= set(sample.ins):
            raise EngineError(
                "the plan draws tokens without adjustments",
                where=sample.path,
                remedy="rebuild the engine here with: allotrope build",
            )
        self._drawn = allocate("drawn tokens", (max_requests,), torch_dtype("int64", ""), device.torch_name, False)
        self._clock = Clock(device.kind == "cuda")
        self._calls = CallClock(self.plan, device.kind == "cuda") if timed else None
        self._reserve({TOKENS: max_tokens, LOGITS: max_requests, SAMPLES: max_requests})

    def run(self, step: StepInput, tap: Tap | None = None) -> StepOutput:
        """Compute one step. `tap(call, outs)` sees each call's outputs just made, and may overwrite them.

        Or it gives inputs, by operand, and the call is made again with those in place of its own.
        """
        return self._launch(step, tap).wait()

    def launch(self, step: StepInput) -> Pending:
        """Start a step; on a CPU it is computed at once."""
        return self._launch(step)

    def _launch(self, step: StepInput, tap: Tap | None = None) -> Results:
        import torch

        if self.program is None:
            raise UsageError("the engine has been closed", remedy="open it again")
        began, calls = self._clock.now(), self._calls
        if calls is not None:
            calls.begin()
        arrays, rows = step_arrays(step, self.page_size)
        self._reserve(rows)  # outside of inference mode, so that callers may write into what they are given
        with torch.inference_mode():
            slots = to_device(arrays, self._device.torch_name) | self._buffers.views(rows) | self._caches
            self._begin(step, slots)
            self.program.run(slots, rows, self._workspace, self._after(tap), {"sample": promises(step)})
            sampled = {name: slots[slot] for name, slot in self._sampled.items()}
            self._drawn.index_copy_(0, slots["s:drawn_slots"], sampled["tokens"].reshape(-1))
            results = Results(step, slots[self._logits], sampled, slots)
            return results.launched(self._clock.ended(began), None if calls is None else calls.take())

    def close(self) -> None:
        """Let go of all memory. The executor is of no use afterwards."""
        self.program, self._caches, self._workspace = None, {}, None
        self._buffers = Buffers(self.plan, self._device.torch_name, poison=False)
        if self._device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()  # back to the driver, not only to torch

    def _after(self, tap: Tap | None) -> After | None:
        """What happens after each call, if anything. With a clock, what came before the first call is nobody's."""
        calls, quiet = self._calls, tap is None and not self._drop_resident
        if quiet and calls is None:
            return None

        def after(call: Call, outs: dict[str, Array], weighed: bool) -> Mapping[str, Array] | None:
            if calls is not None:
                calls.ended(call)
            others = None if tap is None else tap(call, outs)
            if self._drop_resident and weighed:
                self._engine.forget()
            if calls is not None and not quiet:
                calls.skip()  # what was done here is no call's
            return others

        if calls is not None:
            calls.skip()
        return after

    def _reserve(self, rows: Mapping[str, int]) -> None:
        """Make room for a step of this size; grows buffers and workspace if it is the largest yet."""
        if self.program is None or not (self._buffers.reserve(rows) or self._short):
            return
        self._short = True  # until there is a workspace for what the buffers hold
        requests = max(self._buffers.capacity[SAMPLES], 1)
        context = min(self.plan.max_len, self.pages * self.page_size)
        needed = self.program.workspace(self._buffers.capacity, Load(0, requests, context, self.page_size, self.pages))
        if needed > (0 if self._workspace is None else self._workspace.numel()):
            import torch

            self._workspace = None
            self._workspace = allocate("workspaces", (needed,), torch.uint8, self._device.torch_name, self._poison)
        self._short = False

    def _begin(self, step: StepInput, slots: dict[str, Any]) -> None:
        """Copy pages, and give the tokens that only the device knows; nothing in the workspace must matter."""
        import torch

        if len(step.page_copies):
            source, target = slots["s:page_copies"]
            for cache in self._caches.values():
                cache[target] = cache[source]
        if step.slots.max() >= len(self._drawn):
            more = self._drawn.new_zeros(int(step.slots.max()) + 1 - len(self._drawn))
            self._drawn = torch.cat([self._drawn, more])
        if "s:token_slots" in slots:
            tokens = slots["s:tokens"]
            slots["s:tokens"] = torch.where(tokens == LAST_DRAWN, self._drawn[slots["s:token_slots"]], tokens)
        if self._poison and self._workspace is not None:
            fill_poison(self._workspace)


def settle_torch(threads: int | None) -> None:
    """Set torch and the native core for the process: true fp32, no reductions in 16 bits, so many CPU threads."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    native.set_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
