"""The mean of the keys, found on calibration tokens and taken off where the cache keeps codes and that is harmless."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from allotrope.artifact.plan import Plan
from allotrope.build.blocks import Blocks
from allotrope.build.calibration import key_tokens
from allotrope.build.options import BuildOptions
from allotrope.hw.device import Device
from allotrope.models.model import Model
from allotrope.ops.kv_rows import COMPUTE
from allotrope.quant.cache import with_cache
from allotrope.quant.centre import centred, centred_layers, means, worded
from allotrope.quant.narrowed import Narrowed
from allotrope.quant.policy import Policy
from allotrope.quant.streamed import Source

CENTRE = "centre"  # the part that --without leaves out


def decided(policy: Policy, plan: Plan, options: BuildOptions, readable: bool) -> Policy:
    """The policy with what is to happen to the keys of each cache of codes. Without a tokenizer no text can be read."""
    why_not = None if readable else "without a tokenizer there is no text to find it on"
    return worded(policy, plan, f"--without {CENTRE}" if CENTRE in options.without else why_not)


def centring(
    model: Model,
    plan: Plan,
    narrowed: Narrowed,
    chosen: Policy,
    options: BuildOptions,
    device: Device,
    progress: Callable[[int, str], AbstractContextManager[Any]],
) -> tuple[Narrowed, dict[str, Any]]:
    """The narrowed model with the means of `plan`, as it was lowered, taken off its keys; and what was done."""
    layers = centred_layers(chosen)
    if not layers:
        return narrowed, {}
    wide, (ids, facts) = with_cache(plan, COMPUTE), key_tokens(model, plan, options)
    with progress(1, "finding the mean of the keys"):
        source = Source(model, wide, Blocks(wide, device, ids.shape[1]), device.torch_name, {})
        narrowed, taken = centred(narrowed, model, means(source, ids, layers))
    return narrowed, {"centred": taken, "calibration": facts}
