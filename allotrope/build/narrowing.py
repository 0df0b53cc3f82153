"""Quantising on the way to an engine: what calibration needs is found here, and finished blocks are kept meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from allotrope.artifact.plan import Plan
from allotrope.build.blocks import Blocks
from allotrope.build.calibration import calibration
from allotrope.build.options import BuildOptions
from allotrope.errors import UsageError
from allotrope.hw.device import Device
from allotrope.models.model import Model
from allotrope.ops.kv_rows import COMPUTE
from allotrope.quant.cache import with_cache
from allotrope.quant.centre import centred_layers
from allotrope.quant.formats import NAMES
from allotrope.quant.narrow import narrow
from allotrope.quant.narrowed import Narrowed
from allotrope.quant.policy import AS_STORED, Policy
from allotrope.quant.sensitivity import ranking, widened
from allotrope.quant.streamed import Calibration, Source, gathered, streamed

SMOOTH = "smooth"  # the part that --without leaves out
_CODES = ".codes"  # what was quantised, until it is packed


_Progress = Callable[[int, str], AbstractContextManager[Any]]


class Narrowing:
    """The model as it is to be stored. Codes lie in a folder of the unfinished engine until they are packed."""

    def __init__(self, options: BuildOptions, device: Device, folder: Path, progress: _Progress) -> None:
        self._options, self._device, self._folder, self._progress = options, device, folder / _CODES, progress
        self._kept: Path | None = None

    def __call__(self, model: Model, plan: Plan, chosen: Policy, readable: bool) -> Narrowed:
        """By the policy; on calibration tokens where its method, smoothing or --max-kl ask for them.

        Without a tokenizer nothing can be read (`readable`): what was left to us is then rounded to nearest.
        """
        count = len(chosen.narrow) + len(chosen.stored)
        options, name = self._options, self._device.torch_name
        if options.max_kl is not None and (model.quantised or not chosen.narrow):
            why = "the weights are quantised already" if model.quantised else "no weights are to be quantised"
            remedy = "leave it out" if model.quantised else f"add --weights {', '.join(NAMES)}"
            raise UsageError(f"--max-kl is {options.max_kl}, but {why}", where="build", remedy=remedy)
        asked = (options.calibration, options.calibration_tokens, options.max_kl)
        if not readable and options.method == "auto" and asked == (None, None, None):
            chosen = chosen if chosen.method == AS_STORED else replace(chosen, method="nearest")
            calibrated = False
        else:
            calibrated = self._calibrated(chosen)
        if (
            not calibrated
            and not centred_layers(chosen)
            and (options.calibration is not None or options.calibration_tokens is not None)
        ):
            problem = "there is a calibration text, but nothing to be calibrated"
            raise UsageError(problem, where="build", remedy="add --method gptq or awq, --activations or --max-kl")
        if not count:
            return Narrowed(plan)
        self._folder.mkdir()
        if not calibrated or model.quantised:
            with self._progress(count, "quantising weights") as shown:
                return narrow(model, plan, chosen, self._folder, device=name, advance=shown.advance)
        found = calibration(model, plan, options, self._device.kind)
        if options.max_kl is not None:
            ranking(found.ids)  # what could not be measured is said before an hour of calibration
        self._kept = found.folder
        wide = with_cache(plan, COMPUTE)  # what rounding the cache costs is not the weights' to answer for
        source = Source(model, wide, Blocks(wide, self._device, found.ids.shape[1]), name, chosen.narrow)
        return self._streamed(source, chosen, found, plan)

    def _calibrated(self, chosen: Policy) -> bool:
        smoothed = chosen.activations is not None and SMOOTH not in self._options.without
        return smoothed or self._options.max_kl is not None or chosen.method in ("gptq", "awq")

    def _streamed(self, source: Source, chosen: Policy, found: Calibration, plan: Plan) -> Narrowed:
        began, smooth = time.perf_counter(), SMOOTH not in self._options.without
        parts = sum(1 for _ in source.plan.blocks())
        with self._progress(parts, "calibrating and quantising") as shown:
            streamed(source, chosen, found, smooth=smooth, advance=shown.advance)
        facts: dict[str, Any] = {"smooth": smooth} if chosen.activations is not None else {}
        if self._options.max_kl is not None:
            with self._progress(parts, "measuring what each layer adds to the KL") as shown:
                chosen, facts["max_kl"] = widened(source, chosen, found, float(self._options.max_kl), shown.advance)
        facts["seconds"] = round(time.perf_counter() - began, 3)
        return gathered(source, plan, chosen, found, self._folder, facts)

    def packed(self) -> None:
        """The codes have been written where they belong."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self) -> None:
        """The engine is there: finished blocks have served."""
        if self._kept is not None:
            shutil.rmtree(self._kept, ignore_errors=True)
