"""One module's stored tensors, checked as they are taken: every complaint names the tensor in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.dtypes import DTYPES, find_nonfinite
from allotrope.models.quantised.codes import Array, uneven
from allotrope.models.quantised.stored import PER_CHANNEL, Stored

REMEDY = "download the checkpoint again, or correct its quantization_config"
SCALES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Parts:
    """Arrays by the last part of their names: `qweight`, `weight_scale`…; bf16 as uint16."""

    module: str
    arrays: Mapping[str, Array]
    where: str = ""

    def take(self, part: str, *dtypes: str) -> Array:
        """A tensor that must be there, in one of these dtypes."""
        array = self.arrays.get(part)
        if array is None:
            raise CheckpointError(f"{self.module}.{part} is missing", where=self.where or None, remedy=REMEDY)
        if array.dtype not in [DTYPES[dtype] for dtype in dtypes]:
            raise self.bad(part, f"is {array.dtype}, not {' or '.join(dtypes)}")
        return array

    def matrix(self, part: str, *dtypes: str) -> Array:
        """A tensor with two axes, neither of them empty."""
        array = self.take(part, *dtypes)
        if array.ndim != 2 or not array.size:
            raise self.bad(part, f"has shape {list(array.shape)}, but should be a matrix")
        return array

    def shaped(self, part: str, shape: tuple[int, ...], *dtypes: str) -> Array:
        """A tensor of just this shape."""
        array = self.take(part, *dtypes)
        if array.shape != shape:
            raise self.bad(part, f"has shape {list(array.shape)}, but should have {list(shape)}")
        return array

    def scales(self, part: str, shape: tuple[int, ...]) -> Array:
        """Scales of this shape, all finite."""
        array = self.shaped(part, shape, *SCALES)
        tag = next(tag for tag in SCALES if DTYPES[tag] == array.dtype)
        if bad := find_nonfinite(array, tag):
            raise self.bad(part, f"holds {bad} values that are NaN or infinite")
        return array

    def groups(self, part: str, inputs: int, stored: Stored) -> int:
        """How many groups the inputs that `part` has make."""
        if stored.group == PER_CHANNEL:
            return 1
        if inputs % stored.group:
            raise self.bad(part, f"has {inputs} inputs, which groups of {stored.group} do not divide")
        return inputs // stored.group

    def order(self, part: str, inputs: int, groups: int, stored: Stored) -> Array | None:
        """Each input's group; None where they are in order."""
        if part not in self.arrays and not stored.desc_act:
            return None
        order = self.shaped(part, (inputs,), "int32", "int64").astype(np.int32)
        if wrong := uneven(order, groups):
            raise self.bad(part, wrong)
        if np.array_equal(order, in_order(inputs, groups)):
            return None
        if not stored.desc_act:
            raise self.bad(part, "puts inputs out of order, but the config says that they are in order")
        return order

    def bad(self, part: str, problem: str) -> CheckpointError:
        """The error for a tensor that cannot be what it should."""
        return CheckpointError(f"{self.module}.{part} {problem}", where=self.where or None, remedy=REMEDY)


def in_order(inputs: int, groups: int) -> Array:
    """The group of each input where neighbours are together."""
    return np.arange(inputs, dtype=np.int32) // np.int32(inputs // groups)
