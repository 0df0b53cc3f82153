"""What a quantised engine means: for every slot of the recipe the wide weight that it stands for.

Codes are decoded, and what carries a folded scale is taken as it is stored. Put back into the original's own
tensors (rows, transposes and fused matrices as the checkpoint has them), these weights make the oracle that an
engine's implementation is held to: what rounding to the format cost is in both sides and cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from allotrope.artifact.engine import Engine
from allotrope.artifact.layout import stored_dtype
from allotrope.artifact.plan import Call, Plan, name
from allotrope.models.mapping import restore
from allotrope.models.model import Model
from allotrope.ops.codes import decoded
from allotrope.ops.packing import PACKINGS
from allotrope.verify.oracle import DTYPES, Loader
from allotrope.verify.original import Raw, as_torch, loaders

PARTS = ("codes", "scales", "zeros", "order")
"""What a layer's slots are called in which no wide weight lies."""
WHOLE = {"fp64": "fp64", "fp32": "fp32", "fp16": "fp32", "bf16": "fp32"}
"""The precision in which weights are put together for an oracle of a precision: NumPy's, and no coarser."""


@dataclass(frozen=True)
class Narrow:
    """One linear layer whose weight is stored in codes."""

    path: str
    format: str
    activations: str
    call: Call  # the one that computes it, perhaps with its neighbours
    x: str  # the buffer that is its input, before it is put in another order
    order: str | None = None  # the slot of that order: the input's channel that each column of the codes is for


def narrow(plan: Plan) -> dict[str, Narrow]:
    """The layers whose weights are codes, by path, in the plan's order."""
    found = {}
    orders: dict[str, Call] = {}
    for call in plan.calls:
        if call.op == "reorder":
            orders[call.outs["out"]] = call
        if call.op == "linear_codes":
            before = orders.get(call.ins["x"])
            x, order = (call.ins["x"], None) if before is None else (before.ins["x"], name(before.ins["order"]))
            for slot, _ in plan.weights[name(call.ins["codes"])].parts:
                path = slot.removesuffix(".codes")
                form, activations = str(call.params["format"]), str(call.params.get("activations", "none"))
                found[path] = Narrow(path, form, activations, call, x, order)
    return found


def shortened(plan: Plan) -> dict[str, str]:
    """Wide weights that are stored in another dtype than the plan computes in, and in which."""
    parts = {f"{path}.{part}" for path in narrow(plan) for part in PARTS}
    return {
        slot: stored_dtype(plan, weight)
        for weight in plan.weights.values()
        for slot, _ in weight.parts
        if slot not in parts and stored_dtype(plan, weight) != plan.dtype
    }


def is_quantised(plan: Plan) -> bool:
    """Whether anything is stored in less than the dtype that the plan computes in."""
    return bool(narrow(plan)) or bool(shortened(plan)) or bool(plan.cache.narrow)


def formats(plan: Plan) -> tuple[str, ...]:
    """What is quantised, in words: "21 weights int4", "keys and values int8"."""
    counted: dict[str, int] = {}
    for layer in narrow(plan).values():
        inputs = "" if layer.activations == "none" else f" with {layer.activations} inputs"
        counted[f"{layer.format}{inputs}"] = counted.get(f"{layer.format}{inputs}", 0) + 1
    for tag in shortened(plan).values():
        counted[tag] = counted.get(tag, 0) + 1
    kept = (f"keys and values {plan.cache.words}",) if plan.cache.narrow else ()
    return (*(f"{count} weights {form}" for form, count in counted.items()), *kept)


class Stored:
    """An engine's weights slot by slot, however they are packed or fused."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.plan = engine, engine.manifest.plan
        self.narrow = narrow(self.plan)
        # a head in codes that the embedding is looked up in, and the recipe's slot of both
        self._tied = {
            name(call.ins["codes"]).removesuffix(".codes"): f"{call.path}.weight"
            for call in self.plan.calls
            if call.op == "embed_codes"
        }
        self._holder = {slot: held for held, weight in self.plan.weights.items() for slot, _ in weight.parts}

    def __contains__(self, slot: str) -> bool:
        return slot in self._holder

    def slot(self, path: str) -> str:
        """The recipe's slot that a layer's codes stand for."""
        return self._tied.get(path, f"{path}.weight")

    def path(self, slot: str) -> str:
        """The layer whose codes may stand for a slot."""
        return next((path for path, tied in self._tied.items() if tied == slot), slot.removesuffix(".weight"))

    def array(self, slot: str) -> tuple[Raw, str]:
        """A slot as it is stored, in the checkpoint's layout, and its dtype tag; a view."""
        weight = self.plan.weights[self._holder[slot]]
        parts = dict(weight.parts)
        unpacked = PACKINGS[weight.packing].unpack(self._engine.array(self._holder[slot]), list(parts.values()))
        return unpacked[list(parts).index(slot)], stored_dtype(self.plan, weight)

    def tensor(self, slot: str) -> torch.Tensor:
        """The same as a tensor."""
        return as_torch(*self.array(slot))

    def decoded(self, path: str, dtype: torch.dtype, rows: slice = slice(None)) -> torch.Tensor:
        """The weight [out, in] that a layer's codes stand for, its columns in the original's order; some rows of it."""
        zeros = self.tensor(f"{path}.zeros")[rows] if f"{path}.zeros" in self else None
        codes, scales = self.tensor(f"{path}.codes")[rows], self.tensor(f"{path}.scales")[rows]
        found = decoded(codes, scales, zeros, self.narrow[path].format, dtype)
        order = self.narrow[path].order
        if order is None:
            return found
        whole = torch.empty_like(found)
        whole[:, self.tensor(order).long()] = found
        return whole

    def forget(self) -> None:
        """Let go of the resident pages."""
        self._engine.forget()


class Effective:
    """The weights that an engine means, under the original's names."""

    def __init__(self, stored: Stored, model: Model) -> None:
        self._stored, self._model = stored, model

    def value(self, slot: str, dtype: torch.dtype) -> torch.Tensor:
        """One slot. What the engine does not have (biases that are zero) is the checkpoint's."""
        path = self._stored.path(slot)
        if path in self._stored.narrow and path != slot:
            return self._stored.decoded(path, dtype)
        if slot in self._stored:
            return self._stored.tensor(slot).to(dtype)
        return original_value(self._model, slot, dtype)

    def loaders(self, precision: str) -> dict[str, Loader]:
        """For an oracle in `precision`."""
        return loaders(self._model, partial(self.read, WHOLE[precision]))

    def read(self, tag: str, tensor: str) -> tuple[Raw, str]:
        """One of the original's tensors, put together in the dtype `tag`."""
        slots = self._slots[tensor]
        weights = {slot: self.value(slot, DTYPES[tag]).numpy() for slot in slots}
        self._stored.forget()
        return put_together(self._model, slots, weights), tag

    @cached_property
    def _slots(self) -> Mapping[str, tuple[str, ...]]:
        return slots_of(self._model)


def original_value(model: Model, slot: str, dtype: torch.dtype) -> torch.Tensor:
    """A slot as the checkpoint has it."""
    return as_torch(*model.read(slot)).to(dtype)


def slots_of(model: Model) -> dict[str, tuple[str, ...]]:
    """For each of the original's tensors, by canonical name, the recipe's slots that it holds."""
    held: dict[str, list[str]] = {}
    for slot, source in model.sources.items():
        held.setdefault(source.name, []).append(slot)
    tied = dict(model.mapped.must_equal)  # a head that is stored beside the embedding is the embedding
    names = {canonical: model.mapped.names[canonical] for canonical in model.originals}
    return {canonical: tuple(held[tied.get(stored, stored)]) for canonical, stored in names.items()}


def put_together(model: Model, slots: tuple[str, ...], weights: Mapping[str, Raw]) -> Raw:
    """One of the original's tensors out of its slots' weights."""
    [tensor] = restore({slot: model.sources[slot] for slot in slots}, weights).values()
    return tensor
