"""From the checkpoint's tensors to packed weights in the engine's dtype, a piece at a time."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from allotrope.artifact import plan as plans
from allotrope.artifact.layout import stored_dtype
from allotrope.artifact.plan import Plan
from allotrope.build.fuse import SIDE_BY_SIDE
from allotrope.errors import BuildError
from allotrope.models.dtypes import cast, find_nonfinite
from allotrope.models.model import Model
from allotrope.ops.packing import PACKINGS, RawArray
from allotrope.quant.narrowed import Narrowed

_PIECE = 1 << 20  # values in a piece
_INFINITE = {"fp16": 65_520.0, "bf16": 2.0**128 - 2.0**119, "fp32": 2.0**128 - 2.0**103}  # rounds to it, from here on


@dataclass(frozen=True)
class Packer:
    """Yields the packed weights of a plan, of values that `check_values` has passed."""

    model: Model
    plan: Plan
    narrowed: Narrowed

    def __call__(self, name: str) -> Iterable[RawArray]:
        """Packed weight `name`, in order. Only a packing that cannot be made in pieces holds all of it in memory."""
        weight = self.plan.weights[name]
        packing, dtype = PACKINGS[weight.packing], stored_dtype(self.plan, weight)
        pieces = (piece for slot, _ in weight.parts for piece in self._cast(slot, dtype))
        for rows in multiples(pieces, packing.piece) if packing.piece else [np.concatenate(list(pieces))]:
            yield packing.pack([rows])

    def _cast(self, slot: str, dtype: str) -> Iterator[RawArray]:
        """A slot's rows in `dtype`, from what was quantised or from the checkpoint."""
        if slot in self.narrowed.arrays:
            yield _as(dtype, self.narrowed.arrays[slot]())
            return
        stored = self.model.checkpoint.tensors[self.model.sources[slot].name].dtype
        for piece in rows_of(self.model, slot):
            yield cast(piece, stored, dtype)


def multiples(pieces: Iterable[RawArray], rows: int) -> Iterator[RawArray]:
    """The same rows in pieces of multiples of `rows`; only the last may be of another size."""
    left: RawArray | None = None
    for piece in pieces:
        held = piece if left is None else np.concatenate((left, piece))
        full = len(held) - len(held) % rows
        if full:
            yield held[:full]
        left = held[full:] if full < len(held) else None
    if left is not None:
        yield left


def _as(dtype: str, made: RawArray) -> RawArray:
    """What quantising made, as it is stored: codes as they are, floats rounded where they are wider."""
    carriers = {"uint8": "uint8", "int32": "int32", "float16": "fp16", "float32": "fp32"}
    tag = carriers[made.dtype.name]
    return made if tag == dtype else cast(made, tag, dtype)


def check_values(model: Model, dtype: str, allow_nan: bool, advance: Callable[[], None]) -> None:
    """Read every weight once, before anything dear: NaN, infinity and what `dtype` cannot hold are errors.

    With `allow_nan` a tensor that holds NaN or infinity gets a warning instead.
    """
    where, warned = model.checkpoint.origin, set[str]()
    for slot, source in model.sources.items():
        stored = model.checkpoint.tensors[source.name].dtype
        narrower = _INFINITE[dtype] < _INFINITE[stored]
        for piece in rows_of(model, slot):
            bad = find_nonfinite(piece, stored)
            if bad and not allow_nan:
                remedy = "the checkpoint is damaged; --allow-nan builds it all the same"
                raise BuildError(f"tensor {source.name} holds NaN or infinity", where=where, remedy=remedy)
            if bad and source.name not in warned:
                warnings.warn(f"{where}: tensor {source.name} holds NaN or infinity", stacklevel=2)
                warned.add(source.name)
            if narrower and find_nonfinite(cast(piece, stored, dtype), dtype) > bad:
                raise BuildError(
                    f"tensor {source.name} does not fit {dtype}: it would become infinite",
                    where=where,
                    remedy="use --dtype bf16 or fp32",
                )
        advance()


def rows_of(model: Model, slot: str) -> Iterator[RawArray]:
    """A slot's weight, some rows at a time; a transposed one is read whole."""
    source = model.sources[slot]
    if source.transposed:
        whole, _ = model.read(slot)
        for start, stop in _spans(whole.shape):
            yield whole[start:stop]
        return
    first, last = source.rows or (0, source.shape[0])
    for start, stop in _spans((last - first, *source.shape[1:])):
        yield model.checkpoint.read_rows(source.name, first + start, first + stop)


def _spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, _PIECE // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def drop_zero_biases(model: Model, plan: Plan) -> tuple[Plan, list[str]]:
    """The plan without the linear biases of each kind that is zero in every block, and these kinds.

    Galactica's checkpoints may hold biases that are there and all zero: adding them costs time for nothing.
    """
    kinds: dict[str, list[str]] = {}
    for call in plan.calls:
        if call.op == "linear" and "bias" in call.ins:
            slot = plans.name(call.ins["bias"])
            kinds.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", slot), []).append(slot)
    zero = [kind for kind, slots in kinds.items() if all(_all_zero(model, slot) for slot in slots)]
    for fusion in SIDE_BY_SIDE:  # q, k and v without biases, or all with: else they could not be fused
        family = [kind for kind in kinds if kind.split(".")[-2] in fusion.members]
        if not set(family) <= set(zero):
            zero = [kind for kind in zero if kind not in family]
    gone = {slot for kind in zero for slot in kinds[kind]}
    calls = tuple(
        replace(call, ins={k: v for k, v in call.ins.items() if plans.name(v) not in gone}) for call in plan.calls
    )
    weights = {name: weight for name, weight in plan.weights.items() if name not in gone}
    return replace(plan, calls=calls, weights=weights), zero


def _all_zero(model: Model, slot: str) -> bool:
    magnitude = {"bf16": 0x7FFF}.get(model.checkpoint.tensors[model.sources[slot].name].dtype)  # −0 is zero too
    return not any(np.any(piece & magnitude if magnitude else piece) for piece in rows_of(model, slot))
