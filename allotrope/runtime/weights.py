"""An engine's weights, as arrays or as tensors: on a CPU views of the mapped files, on a GPU one copy of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from allotrope.artifact.plan import Plan, Weight
from allotrope.errors import EngineError
from allotrope.ops.packing import PACKINGS
from allotrope.runtime.buffers import torch_dtype
from allotrope.runtime.transfer import to_gpu

if TYPE_CHECKING:
    import torch

_PIECE = 4 << 20  # bytes of a packed weight that are unpacked at a time


class Described(Protocol):
    """A manifest, as far as running goes."""

    @property
    def plan(self) -> Plan:
        """The engine's own plan: it says how the weights are packed."""
        ...

    @property
    def tuned(self) -> Mapping[str, Any]:
        """What was measured beside the plan's tactics."""
        ...


class Engine(Protocol):
    """An engine, as far as running goes: `artifact.engine.Engine` is one."""

    @property
    def manifest(self) -> Described:
        """What it is."""
        ...

    def array(self, name: str) -> npt.NDArray[Any]:
        """Packed weight `name`, memory-mapped; bf16 as uint16."""
        ...

    def dtype(self, name: str) -> str:
        """The dtype tag in which it is stored."""
        ...

    def forget(self) -> None:
        """Let go of resident pages of the mapped files."""
        ...


class Arrays:
    """The engine's weights as NumPy has them: views of the mapped files, in whatever layout a tactic asks for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stored = engine.manifest.plan.weights
        self._holder = {slot: name for name, weight in self._stored.items() for slot, _ in weight.parts}

    def packed(self, name: str) -> Any:
        """The weight as the engine's file has it."""
        return self._engine.array(name)

    def canonical(self, name: str) -> Any:
        """A stored weight, all its parts, as a view in the checkpoint's own layout ([out, in] for matrices)."""
        weight = self._stored[name]
        return self._view(name, self._unpacked(name, [_stacked(weight)])[0])

    def part(self, slot: str) -> Any:
        """One slot of the recipe, wherever it is packed, as a view in the checkpoint's own layout."""
        if slot not in self._holder:
            raise EngineError(f"no weight holds {slot}", remedy="rebuild the engine with: allotrope build")
        name = self._holder[slot]
        weight = self._stored[name]
        slots, shapes = [part for part, _ in weight.parts], [shape for _, shape in weight.parts]
        return self._view(name, self._unpacked(name, shapes)[slots.index(slot)])

    def get(self, name: str, weight: Weight, packing: str) -> Any:
        """`weight` of a plan, which need not be the engine's own, for a tactic that reads `packing`."""
        stored = self._stored.get(name)
        if stored is not None and stored.parts == weight.parts:
            if stored.packing == packing:
                return self.packed(name)
            if packing == "rows":
                return self.canonical(name)
        elif packing == "rows" and len(weight.parts) == 1:
            return self.part(weight.parts[0][0])
        raise EngineError(
            f"weight {name} is packed as {stored.packing if stored else 'part of others'!r}, not {packing!r}",
            remedy="rebuild the engine with: allotrope build",
        )

    def copied(self, name: str, weight: Weight, packing: str) -> bool:
        """Whether `get` has to lay the weight down anew."""
        stored = self._stored.get(name)
        if stored is None or stored.parts != weight.parts:
            stored = self._stored.get(self._holder.get(weight.parts[0][0], ""))
        return stored is not None and stored.packing != packing and PACKINGS[stored.packing].copies

    def _unpacked(self, name: str, shapes: list[tuple[int, ...]]) -> list[npt.NDArray[Any]]:
        """The parts of a weight. One that must be copied is let go of meanwhile: nothing is in memory twice."""
        packing, packed = PACKINGS[self._stored[name].packing], self._engine.array(name)
        if not packing.copies:
            return packing.unpack(packed, shapes)
        rows, *width = PACKINGS["rows"].shape(shapes)
        whole, step = np.empty((rows, *width), packed.dtype), max(1, _PIECE // packed[0].nbytes)
        for start in range(0, len(packed), step):
            first, last = start * packing.piece, min((start + step) * packing.piece, rows)
            whole[first:last] = packing.unpack(packed[start : start + step], [(last - first, *width)])[0]
            self._engine.forget()
        return PACKINGS["rows"].unpack(whole, shapes)

    def _view(self, name: str, unpacked: npt.NDArray[Any]) -> Any:
        return unpacked


class Weights(Arrays):
    """The engine's weights as tensors on one device. Nothing is loaded before it is asked for, and nothing twice."""

    def __init__(self, engine: Engine, device: str) -> None:
        super().__init__(engine)
        self._device = device
        self._loaded: dict[str, torch.Tensor] = {}

    def packed(self, name: str) -> torch.Tensor:
        """The weight as the engine's file has it."""
        if name not in self._loaded and self._device != "cpu":
            arrays = {other: (self._engine.array(other), self._engine.dtype(other)) for other in self._stored}
            self._loaded = to_gpu(arrays, self._device)  # all of them: whoever runs reads all
            self._engine.forget()  # the host's pages have served
        if name not in self._loaded:
            self._loaded[name] = self._tensor(self._engine.array(name), self._engine.dtype(name))
        return self._loaded[name]

    def _tensor(self, raw: npt.NDArray[Any], dtype: str) -> torch.Tensor:
        import torch

        carrier = raw.view(np.int16) if raw.dtype == np.uint16 else raw
        return torch.from_numpy(carrier).view(torch_dtype(dtype, ""))

    def _view(self, name: str, unpacked: npt.NDArray[Any]) -> torch.Tensor:
        """The part of the packed tensor that `unpacked` is of the packed array: same offset, same strides."""
        array, packed = self._engine.array(name), self.packed(name)
        if not np.may_share_memory(array, unpacked):
            return self._tensor(unpacked, self._engine.dtype(name)).to(self._device)
        offset = unpacked.__array_interface__["data"][0] - array.__array_interface__["data"][0]
        strides = [stride // array.itemsize for stride in unpacked.strides]
        return packed.as_strided(unpacked.shape, strides, packed.storage_offset() + offset // array.itemsize)


def weight_bytes(plan: Plan) -> int:
    """What the plan's weights take."""
    from allotrope.artifact.layout import stored_dtype
    from allotrope.runtime.buffers import ITEM_BYTES

    return sum(
        int(np.prod(_stacked(weight), dtype=np.int64)) * ITEM_BYTES[stored_dtype(plan, weight)]
        for weight in plan.weights.values()
    )


def _stacked(weight: Weight) -> tuple[int, ...]:
    shapes = [shape for _, shape in weight.parts]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
