"""Which scales a build folded into an engine's weights, found by comparing these with the checkpoint's.

AWQ and SmoothQuant divide channels by s in the op before and multiply the weights' columns by s, which changes nothing
but where rounding falls:

    norm / s   →   q, k, v · s (gate, up · s)          v's rows / s   →   o · s          up's rows / s   →   down · s

What the engine should hold is therefore known from the checkpoint and s, and s from a norm as it is stored; where rows
are codes, from their biases or as the factor by which codes and checkpoint agree best.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from allotrope.models.model import Model
from allotrope.ops import check
from allotrope.verify.effective import Stored, original_value
from allotrope.verify.places import block_of

_AFTER = {"attn.q": "attn.norm", "attn.k": "attn.norm", "attn.v": "attn.norm", "mlp.gate": "mlp.norm"}
_AFTER |= {"mlp.up": "mlp.norm", "attn.o": "attn.v", "mlp.down": "mlp.up"}
"""A linear layer, and the op before it into which its columns' scales can have been folded."""
_WIDE = torch.float64


class Folds:
    """The scales, layer by layer. `recorded` is what the build says of each narrow weight, by path."""

    def __init__(self, stored: Stored, model: Model, recorded: Mapping[str, Mapping[str, float]]) -> None:
        self._stored, self._model, self._recorded = stored, model, recorded
        self.columns = cache(self._columns)
        self.rows = cache(self._rows)

    def wide(self, path: str, dtype: torch.dtype = _WIDE) -> torch.Tensor:
        """The wide weight that a layer's codes stand in for: the checkpoint's, with its scales."""
        return self.scaled(path, original_value(self._model, self._stored.slot(path), _WIDE)).to(dtype)

    def scaled(self, path: str, weight: torch.Tensor, here: slice = slice(None)) -> torch.Tensor:
        """Rows `here` of the checkpoint's weight, in fp64, with the scales that were folded."""
        columns, rows = self.columns(path), self.rows(path)
        if columns is not None:
            weight = weight * columns
        return weight if rows is None else weight * rows[here, None]

    def is_folded(self, path: str) -> bool:
        """Whether the weight is no longer the checkpoint's by itself."""
        return self.columns(path) is not None or self.rows(path) is not None

    def applied(self, slot: str, original: torch.Tensor) -> torch.Tensor | None:
        """What the scales make of a slot that is stored wide; None where none can have been folded into it."""
        path, _, part = slot.rpartition(".")
        if path.endswith("norm"):
            factor = self._of_norm(path)
        elif part == "bias":
            factor = self.rows(path)
        else:
            return self.wide(path) if self.is_folded(path) else None
        return None if factor is None else original * factor

    def _columns(self, path: str) -> torch.Tensor | None:
        """By what the columns of a layer's weight were multiplied; None if by nothing."""
        before = self._before(path)
        if before is None:
            return None
        if before.endswith("norm"):
            factor = self._of_norm(before)
        else:
            factor = self.rows(before)
            if factor is not None and path.endswith(".o"):
                factor = self._per_head(factor, path)
        return None if factor is None else 1 / factor

    def _rows(self, path: str) -> torch.Tensor | None:
        """By what the rows of a layer's weight were multiplied; None if by nothing."""
        block = block_of(path)
        if not block.startswith("blocks.") or not any(self._changed(reader) for reader in self._readers(path)):
            return None
        slot = f"{path}.bias"  # zeros beside keys less their mean are no bias of the original's
        bias = self._ratio(slot) if slot in self._stored and slot in self._model.sources else None
        weight = original_value(self._model, f"{path}.weight", _WIDE)
        columns = self.columns(path)
        weight = weight if columns is None else weight * columns
        narrow = path in self._stored.narrow
        here = self._stored.decoded(path, _WIDE) if narrow else self._stored.tensor(f"{path}.weight").to(_WIDE)
        energy = weight.square().sum(1)
        best = torch.where(energy > 0, (here * weight).sum(1) / energy, 1.0)
        known = best if bias is None else torch.where(bias.isfinite(), bias, best)
        return torch.where(known.isfinite() & (known != 0), known, 1.0)

    def _changed(self, reader: str) -> bool:
        """Whether scales were folded into a layer: what the build measured of it has not the checkpoint's size."""
        slot = f"{reader}.weight"
        if slot in self._stored:
            here = self._stored.tensor(slot)
            return not torch.equal(here, original_value(self._model, slot, here.dtype))
        found = self._recorded.get(reader)
        weight = original_value(self._model, slot, _WIDE)
        return found is not None and not check.same_sum(float(weight.square().sum()), float(found["signal"]))

    def _readers(self, path: str) -> list[str]:
        """The layers that read what an op gives, and would hold the inverse of what was folded into it."""
        block = block_of(path)
        named = [f"{block}.{after}" for after, op in _AFTER.items() if f"{block}.{op}" == path]
        return [reader for reader in named if f"{reader}.weight" in self._model.sources]

    def _before(self, path: str) -> str | None:
        block = block_of(path)
        op = _AFTER.get(path.removeprefix(f"{block}."))
        return None if op is None or (self._post_norm(block) and op.endswith("norm")) else f"{block}.{op}"

    def _post_norm(self, block: str) -> bool:
        return self._model.recipe.blocks[int(block.partition(".")[2])].post_norm

    def _of_norm(self, path: str) -> torch.Tensor | None:
        """Of a norm: the factor on its weight, or on its bias where the weight is zero."""
        slot = f"{path}.weight"
        if slot not in self._stored or not any(self._changed(reader) for reader in self._readers(path)):
            return None
        factor = self._ratio(slot)
        if factor is not None and f"{path}.bias" in self._stored:
            bias = self._ratio(f"{path}.bias")
            factor = factor if bias is None else torch.where(factor.isfinite(), factor, bias)
        if factor is None:
            return None
        return torch.where(factor.isfinite() & (factor != 0), factor, 1.0)

    def _ratio(self, slot: str) -> torch.Tensor | None:
        """Stored over original, NaN where that is nothing; None where the two are the same."""
        tag = self._stored.array(slot)[1]
        here = self._stored.tensor(slot)
        there = original_value(self._model, slot, here.dtype)
        if torch.equal(here, there):
            return None
        original = original_value(self._model, slot, _WIDE)
        factor = torch.where(original == 0, torch.nan, here.to(_WIDE) / original)
        return self._tidied(factor, tag)

    @staticmethod
    def _tidied(factor: torch.Tensor, tag: str) -> torch.Tensor:
        """Scales keep eight significant bits: what a finer dtype shows of one is enough to know it exactly."""
        exact = 1 / (1 / factor).bfloat16().to(_WIDE)
        near = (exact / factor - 1).abs() <= check.tiny(tag)
        return torch.where(near & (tag != "bf16"), exact, factor)

    def _per_head(self, factor: torch.Tensor, path: str) -> torch.Tensor:
        """A value head's channels, for every query head that reads it."""
        spec = self._model.recipe.blocks[int(block_of(path).partition(".")[2])].attention
        heads = factor.view(spec.kv_heads, 1, -1)
        return heads.expand(-1, spec.heads // spec.kv_heads, -1).reshape(-1)
