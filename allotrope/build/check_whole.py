"""The last gate: the engine as it will run, once, against the all-reference plan in fp32.

Each op was checked by itself; what is left to go wrong is how they were put together: a fusion's columns,
a packing, a buffer read after it was overwritten. Truth is the plan as it was lowered, on references, with
fp32 buffers, over the same stored weights. The noise floor is the same plan with every call's output
disturbed by what the numerics policy lets chance do to it; the policy then judges the engine's logits
exactly as it judges an op's output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from allotrope.artifact.engine import Engine
from allotrope.artifact.plan import Call, Plan
from allotrope.build.options import BuildOptions
from allotrope.errors import BuildError
from allotrope.hw.device import Device
from allotrope.ops import check
from allotrope.ops.kv_rows import COMPUTE
from allotrope.ops.tactic import REFERENCE
from allotrope.quant.cache import with_cache
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.step import WANT_ALL, StepInput

_PAGE_SIZE = 16
_PROMPTS = (21, 6, 1)  # ragged, over a page's border, and as short as can be


def check_whole(engine: Engine, lowered: Plan, device: Device, options: BuildOptions) -> dict[str, Any]:
    """Run a prefill and a decode step; the evidence, or a BuildError if the engine is not the same model."""
    plan = engine.manifest.plan
    truth_plan = replace(lowered.with_tactics(((None, REFERENCE),)), dtype="fp32")
    steps = _steps(plan, options.seed)
    actual = _logits(engine, plan, device, steps)
    truth = _logits(engine, truth_plan, device, steps)
    disturbed = _logits(engine, truth_plan, device, steps, _Disturber(check.tiny(plan.dtype), options.seed, device))
    error, floor = check.compare(actual, truth), check.compare(disturbed, truth)
    if (wide := _wide(truth_plan)) != truth_plan:
        floor = check.larger(floor, check.compare(_logits(engine, wide, device, steps), truth))
    reason = check.within(error, floor, plan.dtype)
    if reason is not None and not (options.allow_nan and not truth.isfinite().all()):
        raise BuildError(
            f"the whole model differs from its reference plan: {reason}",
            where="the last check of the build",
            remedy="leave parts out with --without to find the one at fault, or use --plan reference",
        )
    figures = {"max_error": error.max_rel_rms, "rms_error": error.rms_rel_rms}
    figures |= {"floor_max": floor.max_rel_rms, "floor_rms": floor.rms_rel_rms}
    return {
        "ok": reason is None,
        "tokens": int(truth.shape[0]),
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "same_top1": float((actual.argmax(-1) == truth.argmax(-1)).double().mean()),
    }


def _wide(plan: Plan) -> Plan:
    """The plan with activations, keys and values as they are computed.

    Rounding may push a value over the border between two codes, and then it is off by a whole step: as much as coding
    it may cost at the most. So where any of them are coded, that cost is a floor, too.
    """
    return with_cache(replace(plan, calls=tuple(_with_wide_inputs(call) for call in plan.calls)), COMPUTE)


def _with_wide_inputs(call: Call) -> Call:
    return replace(call, params={name: value for name, value in call.params.items() if name != "activations"})


class _Disturber:
    """A tap that adds to every float output a normal disturbance of `step` times its row's RMS."""

    def __init__(self, step: float, seed: int, device: Device) -> None:
        self._step = step
        self._random = torch.Generator(device.torch_name).manual_seed(seed)

    def __call__(self, call: Call, outs: Mapping[str, torch.Tensor]) -> None:
        for name, out in outs.items():
            if out.is_floating_point() and not name.endswith("cache"):
                rms = out.square().mean(-1, keepdim=True).sqrt()
                noise = torch.randn(out.shape, generator=self._random, device=out.device, dtype=out.dtype)
                out.add_(noise.mul_(rms), alpha=self._step)


def _logits(
    engine: Engine, plan: Plan, device: Device, steps: list[StepInput], tap: _Disturber | None = None
) -> torch.Tensor:
    """The logits of all steps, on the CPU."""
    requests = steps[0].rows
    executor = EagerExecutor(
        engine,
        device=device,
        pages=requests * steps[0].pages.shape[1],
        page_size=_PAGE_SIZE,
        max_tokens=max(len(step.tokens) for step in steps),
        max_requests=requests,
        plan=plan,
        drop_resident=True,
    )
    try:
        return torch.cat([executor.run(step, tap).logits.to("cpu", torch.float32, copy=True) for step in steps])
    finally:
        executor.close()


def _steps(plan: Plan, seed: int) -> list[StepInput]:
    """All prompts in one step, then one more token for each."""
    random = np.random.default_rng(seed)
    lengths = np.array([max(1, min(length, plan.max_len - 1)) for length in _PROMPTS], np.int32)
    if plan.max_len == 1:
        return [_step(plan, random, np.zeros_like(lengths), lengths, lengths)]
    ones = np.ones_like(lengths)
    return [
        _step(plan, random, np.zeros_like(lengths), lengths, lengths),
        _step(plan, random, lengths, ones, lengths),
    ]


def _step(plan: Plan, random: np.random.Generator, first: Any, counts: Any, prompts: Any) -> StepInput:
    rows = len(counts)
    pages = -(-(max(_PROMPTS) + 1) // _PAGE_SIZE)
    zeros = np.zeros(rows, np.float32)
    return StepInput(
        slots=np.arange(rows, dtype=np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        first=first.astype(np.int32),
        tokens=random.integers(0, plan.vocab, int(counts.sum()), dtype=np.int32),
        # handed out backwards, so that a page's number never happens to be its place
        pages=np.arange(rows * pages, dtype=np.int32)[::-1].reshape(rows, pages).copy(),
        want=np.full(rows, WANT_ALL, np.uint8),
        sample=np.zeros(rows, np.bool_),
        prompt_lens=prompts.astype(np.int32),
        temperature=zeros,
        top_k=np.zeros(rows, np.int32),
        top_p=zeros + 1,
        min_p=zeros,
        seeds=np.zeros(rows, np.int64),
        candidates=np.zeros(rows, np.int32),
        page_copies=np.zeros((0, 2), np.int32),
    )
