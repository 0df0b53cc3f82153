"""Constants that a build took off a layer's keys, which no softmax over them can see.

That holds where keys go from a linear layer into the cache as they are, neither turned nor normalised. The function
that the engine computes is then still the original's; but what is rounded into a narrow cache is not, so the original
that stands for what is stored gets the same bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from allotrope.artifact.engine import Engine
from allotrope.artifact.plan import Plan
from allotrope.models.model import Model
from allotrope.models.recipe import Recipe
from allotrope.ops import check
from allotrope.verify.effective import Stored, original_value
from allotrope.verify.oracle import Oracle
from allotrope.verify.places import block_of

Forward = Callable[..., torch.Tensor]
_PARTS = ("attn.q", "attn.k", "attn.v")


def may_have(plan: Plan, recipe: Recipe, path: str) -> bool:
    """Whether a linear layer may have a bias that the original lacks: keys one of any size, and beside them zeros."""
    block = block_of(path)
    if not block.startswith("blocks.") or path.removeprefix(f"{block}.") not in _PARTS:
        return False
    layer = int(block.partition(".")[2])
    spec = recipe.blocks[layer].attention
    return spec.rotary is None and spec.qk_norm is None and layer in plan.cache.coded


class Shifts:
    """What was taken off, beside what the build says of it."""

    def __init__(self, engine: Engine, model: Model) -> None:
        self._stored, self._model = Stored(engine), model
        said: Mapping[str, Any] = engine.manifest.evidence.get("kv", {}).get("centred", {})
        self._taken = {path: float(one["taken"]) for path, one in said.items()}

    def known(self, slot: str) -> bool:
        """Whether the build says that it took something off by this bias."""
        return slot.removesuffix(".bias") in self._taken

    def complaint(self, slot: str) -> str | None:
        """What is wrong with a bias that is not the original's, or that it lacks; None if nothing is."""
        path, _, part = slot.rpartition(".")
        inside = part == "bias" and may_have(self._stored.plan, self._model.recipe, path)
        ours = self._stored.tensor(slot).double()
        known = slot in self._model.sources
        lost = (original_value(self._model, slot, torch.float64) if known else torch.zeros_like(ours)) - ours
        if inside and path.endswith(".k") and path in self._taken:
            taken = float(lost.square().sum())
            if check.same_sum(taken, self._taken[path]):
                return None
            return f"{taken**0.5:.4g} (norm) was taken off by {slot}, the build says {self._taken[path] ** 0.5:.4g}"
        if inside and not known and not ours.any():
            return None
        return f"{slot} differs from the original" if known else f"{slot} is no weight of the original"

    def install(self, oracle: Oracle) -> Oracle:
        """Give the original the biases that it has no place for. What it has a place for is a weight like others."""
        plan, family, recipe = self._stored.plan, self._model.family, self._model.recipe
        for slot in [slot for weight in plan.weights.values() for slot, _ in weight.parts]:
            path, _, part = slot.rpartition(".")
            if part != "bias" or slot in self._model.sources or not path.endswith(".k"):
                continue
            site = family.site(path, recipe)
            if site is not None and may_have(plan, recipe, path):
                _add(oracle.module(site.module), site.columns, self._stored.tensor(slot).to(oracle.device))
        return oracle


def _add(module: nn.Module, columns: tuple[int, int] | None, bias: torch.Tensor) -> None:
    """Have a module add `bias` to some columns of its output."""
    plain: Forward = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = plain(x).clone()
        own = out if columns is None else out[..., columns[0] : columns[1]]
        own += bias.to(out.dtype)
        return out

    module.__dict__["forward"] = forward
