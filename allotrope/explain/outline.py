"""The plan that a build with other options would have: lowered from the checkpoint, tactics chosen, no weight read.

What is timed for it is kept, so that a build that follows need not time it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import Plan
from allotrope.build import select
from allotrope.build.builder import seeded, tokenizer_files
from allotrope.build.centring import decided
from allotrope.build.options import BuildOptions, compute_dtype
from allotrope.build.pieces import drop_zero_biases
from allotrope.build.timings import Timings
from allotrope.build.tune import Tuner
from allotrope.errors import AllotropeError, UsageError
from allotrope.hw.device import Device
from allotrope.models.lower import lower
from allotrope.models.model import Model, open_model
from allotrope.ops.kv_rows import COMPUTE
from allotrope.quant.cache import with_cache
from allotrope.quant.centre import biased, centred_keys
from allotrope.quant.held import held
from allotrope.quant.policy import Policy, Wanted, policy, with_tables
from allotrope.quant.rewrite import rewrite

_FORMATS = ("weights", "group_size", "asymmetric", "activations", "method")


@dataclass(frozen=True)
class Outline:
    """A plan whose tactics are still to be chosen, and the options that made it so."""

    plan: Plan
    options: BuildOptions

    def chosen(self, device: Device, threads: int, advance: Callable[[], None] = lambda: None) -> tuple[Plan, int]:
        """With the tactics and fusions that a build would choose; how many had to be timed."""
        if self.options.plan == "reference":
            return select.reference(self.plan).plan, 0
        tuner = Tuner(device, self.options, Timings.load(device, threads), advance)
        found = select.select(self.plan, self.options, tuner.trials, tuner.prove, None, device.kind)
        tuner.timings.save()
        return found.plan, tuner.timed


def outline(described: Manifest, given: Mapping[str, Any], kind: str) -> Outline:
    """The plan of the engine's checkpoint, built as the engine was but for the options given.

    New formats of weights replace the engine's with all that belongs to them.
    """
    options = dict(described.options)
    if "weights" in given:
        options |= {name: BuildOptions.__dataclass_fields__[name].default for name in _FORMATS}
        options |= {"calibration": None, "calibration_tokens": None, "max_kl": None}
    options |= given
    for part, name in (("smooth", "activations"), ("centre", "kv")):  # what is not done any more is not left out
        if options.get(name) is None:
            options["without"] = tuple(one for one in options.get("without", ()) if one != part)
    wanted = BuildOptions.of(**options)
    model = _model(described, wanted)
    dtype = compute_dtype(wanted.dtype, model.dtypes[0], kind)
    plan, _ = drop_zero_biases(model, lower(model.recipe, dtype))
    chosen: Policy = policy(plan, Wanted(**wanted.wanted), held(model, plan))
    chosen = with_tables(chosen, plan, model.dtype_of)
    plan = with_cache(plan, tuple(chosen.kv.values()) or COMPUTE)
    chosen = decided(chosen, plan, wanted, bool(tokenizer_files(model)))
    return Outline(biased(rewrite(plan, chosen), centred_keys(chosen, plan)), wanted.settled(kind))


def _model(described: Manifest, options: BuildOptions) -> Model:
    """The engine's checkpoint, if it is still there and still the same."""
    path = str(described.source["path"])
    try:
        model = open_model(seeded(path, options), allow_pickle=options.allow_pickle)
    except (AllotropeError, OSError) as error:
        problem = f"what a change would do is told from the checkpoint, and that cannot be opened: {error}"
        raise UsageError(problem, where=path, remedy="put it back, or add --predict none") from error
    if model.checkpoint.digest() != described.source["digest"]:
        problem = "what a change would do is told from the checkpoint, and that is another one by now"
        raise UsageError(problem, where=path, remedy="build the engine again, or add --predict none")
    return model
