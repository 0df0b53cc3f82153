"""Where an engine rounds what flows through it (inputs of linear layers, keys and values), and the original made to.

Rounding to few bits is no smooth function: a difference in the last bit of its input may move a code by a whole
step. So, where errors are measured, both sides are given the same values in front of every quantiser, in the
engine's own dtype, as they are given the same values at the beginning of every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from allotrope.artifact.plan import Call, Plan, kind, kv_path, name
from allotrope.models.family import Family
from allotrope.models.recipe import Recipe
from allotrope.ops.kv_codes import fake
from allotrope.ops.kv_rows import COMPUTE
from allotrope.ops.rows import quantise_rows
from allotrope.verify.effective import Narrow, narrow
from allotrope.verify.oracle import DTYPES, Oracle, Probe, as_written
from allotrope.verify.places import Place, block_of

Columns = tuple[int, int]
Forward = Callable[..., torch.Tensor]
Active = Callable[[str], bool]
_KV = (("k", "key"), ("v", "value"))


@dataclass(frozen=True)
class Read:
    """What a quantiser reads, as calls write it: `columns` of a call's operand are `given`'s `of` columns."""

    probe: str
    operand: str
    columns: Columns
    of: Columns


class Quantisers:
    """Every place of a plan where activations, keys or values are rounded to few bits."""

    def __init__(self, plan: Plan, family: Family, recipe: Recipe) -> None:
        self._family, self._recipe = family, recipe
        self._inputs = {path: layer for path, layer in narrow(plan).items() if layer.activations != "none"}
        self._dtype = DTYPES[plan.dtype]
        self._kv = {kv_path(layer): form for layer, form in plan.cache.narrow.items()}
        self.probes: dict[str, Probe] = {}
        self.by_call: dict[str, list[Read]] = {}
        writers = _Writers(plan)
        for call in plan.calls:
            for slot, probe in self._quantised(call):
                key = f"{probe.module}:{probe.side}"
                self.probes[key] = probe
                for writer, operand, columns, of in writers.of(slot):
                    self.by_call.setdefault(writer.path, []).append(Read(key, operand, columns, of))
            writers.wrote(call)

    def cached(self, place: Place) -> str | None:
        """The probe of what is rounded into a cache, bit for bit as the cache is given it."""
        if place.cache is None or place.form == COMPUTE:
            return None
        return f"{place.block.partition('.')[2]}:{dict(_KV)[place.cache[0]]}"

    def room(self, sequences: Sequence[Sequence[int]], device: str) -> dict[str, torch.Tensor]:
        """Tensors for `take`, one per probe."""
        rows = sum(len(ids) for ids in sequences)
        widths: dict[str, int] = {}
        for reads in self.by_call.values():
            for read in reads:
                widths[read.probe] = max(widths.get(read.probe, 0), read.of[1])
        return {
            probe: torch.full((rows, width), torch.nan, dtype=self._dtype, device=device)
            for probe, width in widths.items()
        }

    def __bool__(self) -> bool:
        return bool(self.probes)

    def _quantised(self, call: Call) -> Iterator[tuple[str, Probe]]:
        """The slots that a call rounds as it reads them, and where the original has the same values."""
        layer = block_of(call.path).partition(".")[2]
        if call.op == "kv_write" and kv_path(int(layer)) in self._kv:
            yield from ((call.ins[operand], Probe(layer, side)) for operand, side in _KV)
        layers = [layer for layer in self._inputs.values() if layer.call is call]
        if layers:
            site = self._family.site(layers[0].path, self._recipe)
            if site is not None:
                yield layers[0].x, Probe(site.module, "in")

    def install(self, oracle: Oracle, active: Active = lambda _: True) -> Oracle:
        """Make the original round where the engine does, as long as a linear layer, or a `kv_path`, is `active`."""

        def round_kv(layer: int, states: torch.Tensor) -> torch.Tensor:
            path = kv_path(layer)
            return rounded_kv(states, self._kv[path]) if path in self._kv and active(path) else states

        if self._kv:
            oracle.round_kv = round_kv
        layers: dict[str, list[tuple[Columns | None, Narrow]]] = {}
        for layer in self._inputs.values():
            site = self._family.site(layer.path, self._recipe)
            if site is not None:
                layers.setdefault(site.module, []).append((site.columns, layer))
        for module, found in layers.items():
            _round_inputs(oracle.module(module), found, active)
        return oracle

    def give(self, call: Call, outs: Mapping[str, torch.Tensor], given: Mapping[str, Any], index: torch.Tensor) -> bool:
        """Put the given values where the quantisers after a call will read them; whether the call made any such."""
        reads = self.by_call.get(call.path, ())
        for read in reads:
            out = outs[read.operand]
            value = given[read.probe].to(out.device)[index][:, slice(*read.of)]
            out[:, slice(*read.columns)] = value.to(out.dtype)
        return bool(reads)

    def take(self, call: Call, outs: Mapping[str, torch.Tensor], taken: dict[str, Any], index: torch.Tensor) -> None:
        """Keep what the quantisers after a call will read, in `taken`'s tensors."""
        for read in self.by_call.get(call.path, ()):
            taken[read.probe][index, slice(*read.of)] = outs[read.operand][:, slice(*read.columns)]


class _Writers:
    """Which calls wrote what a buffer holds, as a plan goes along."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._wrote: list[tuple[Call, str, str, int, int]] = []

    def _span(self, slot: str) -> tuple[str, int, int]:
        buffer = self._plan.buffers[name(slot)]
        return buffer.of or name(slot), buffer.start, buffer.start + buffer.width

    def wrote(self, call: Call) -> None:
        """A call's outputs are there."""
        for operand, slot in call.outs.items():
            if kind(slot) == "b":
                self._wrote.append((call, operand, *self._span(slot)))

    def of(self, slot: str) -> Iterator[tuple[Call, str, Columns, Columns]]:
        """Who wrote the columns of a slot: the call, its operand, the columns there, and which of the slot's they are.

        The latest first, until all columns are accounted for.
        """
        root, start, stop = self._span(slot)
        left = {*range(start, stop)}
        for call, operand, whole, first, last in reversed(self._wrote):
            found = left & {*range(first, last)} if whole == root else set()
            if found:
                low, high = min(found), max(found) + 1
                yield call, operand, (low - first, high - first), (low - start, high - start)
                left -= found
            if not left:
                return


def _round_inputs(module: nn.Module, layers: Sequence[tuple[Columns | None, Narrow]], active: Active) -> None:
    """Round what a module computes with; of a module that computes several calls, the columns whose call does so.

    Hooks stay outside: what is recorded and replaced before the module is what the quantiser reads.
    """
    plain: Forward = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        forms = {columns: layer.activations for columns, layer in layers if active(layer.path)}
        if None in forms:
            return plain(rounded_rows(x, forms[None]))
        out = plain(x)
        for form in dict.fromkeys(forms.values()):
            found, out = plain(rounded_rows(x, form)), out.clone()
            for columns in (columns for columns, other in forms.items() if other == form and columns is not None):
                out[..., slice(*columns)] = found[..., slice(*columns)]
        return out

    module.__dict__["forward"] = forward


def rounded_rows(x: torch.Tensor, form: str) -> torch.Tensor:
    """What is multiplied where `x` is rounded to codes, row by row."""
    with as_written():
        found = quantise_rows(x, form)
        return found.codes.to(x.dtype) * found.scales.to(x.dtype)


def rounded_kv(states: torch.Tensor, form: str) -> torch.Tensor:
    """What attention reads of keys or values `[batch, heads, length, head_dim]` that are kept as codes."""
    with as_written():
        lying = states.transpose(1, 2)
        return fake(lying.flatten(-2), lying.shape[2], form).reshape(lying.shape).transpose(1, 2)
