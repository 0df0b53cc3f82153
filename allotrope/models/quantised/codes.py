"""What every layout is unpacked to: a matrix of small numbers, [out, in], and the scales that they are counted in.

    weight[o, i] = (codes[o, i] − zeros[o, g]) · scales[o, g]        g = order[i], or i // group without an order

`zeros` is None where it is 0 throughout. `scales` stay in the dtype in which they were stored (bf16 as uint16).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allotrope.models.dtypes import DTYPES, cast, find_nonfinite

Array = np.ndarray[Any, Any]

NUMBERS: dict[str, tuple[str, int, int]] = {
    "uint4": ("u1", 0, 15),
    "uint8": ("u1", 0, 255),
    "int4": ("i1", -8, 7),
    "int8": ("i1", -128, 127),
    "fp8": ("u1", 0, 255),  # e4m3 as raw bytes
}
"""What a code is: the dtype of its array, the least and the greatest."""

_SCALES = {DTYPES[tag]: tag for tag in ("fp64", "fp32", "fp16", "bf16")}
FP8_NAN = (0x7F, 0xFF)


@dataclass(frozen=True, eq=False)
class Codes:
    """One quantised matrix. What does not fit together is a ValueError: the layouts check before they make one."""

    number: str
    codes: Array
    scales: Array  # [out, groups]
    zeros: Array | None  # [out, groups], of the codes' dtype
    group: int | None  # None: one group, all of a row
    order: Array | None = None  # [in] int32: each input's group, of which every one has `group` inputs

    def __post_init__(self) -> None:
        kind, low, high = NUMBERS[self.number]
        if self.codes.ndim != 2 or not self.codes.size:
            raise ValueError(f"codes of shape {list(self.codes.shape)} are no matrix")
        for name, array in (("codes", self.codes), ("zeros", self.zeros)):
            if array is None:
                continue
            if array.dtype != np.dtype(kind) or array.min() < low or array.max() > high:
                raise ValueError(f"{name} are no {self.number}")
        if self.number == "fp8" and np.isin(self.codes, FP8_NAN).any():
            raise ValueError("codes hold NaN")
        _, inputs = self.codes.shape
        if self.group is not None and (self.group < 1 or inputs % self.group):
            raise ValueError(f"groups of {self.group} do not divide {inputs} inputs")
        groups = inputs // (self.group or inputs)
        if self.scales.shape != (self.codes.shape[0], groups):
            raise ValueError(f"scales have shape {list(self.scales.shape)}")
        if self.zeros is not None and (self.zeros.shape != self.scales.shape or self.number == "fp8"):
            raise ValueError(f"zeros have shape {list(self.zeros.shape)}")
        if find_nonfinite(self.scales, self.scale_dtype):
            raise ValueError("scales are not finite")
        if self.order is not None:
            if self.order.dtype != np.int32 or self.order.shape != (inputs,):
                raise ValueError(f"the order has shape {list(self.order.shape)}")
            if wrong := uneven(self.order, groups):
                raise ValueError(wrong)

    @property
    def scale_dtype(self) -> str:
        """The scales' dtype tag."""
        if self.scales.dtype not in _SCALES:
            raise ValueError(f"scales are {self.scales.dtype}")
        return _SCALES[self.scales.dtype]

    def rows(self, start: int, stop: int) -> Codes:
        """Those of some outputs."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return replace(self, codes=self.codes[start:stop], scales=self.scales[start:stop], zeros=zeros)

    def dequantised(self, dtype: str = "fp32") -> Array:
        """The matrix in fp32 or fp64; what is subtracted is exact, the product is rounded once, in that dtype."""
        if dtype not in ("fp32", "fp64"):
            raise ValueError(f"no dequantising to {dtype}")
        real = DTYPES[dtype]
        scales = cast(self.scales, self.scale_dtype, dtype)
        values = fp8_values(real)[self.codes] if self.number == "fp8" else self.codes.astype(real)
        if self.order is not None:
            if self.zeros is not None:
                values -= self.zeros[:, self.order].astype(real)
            values *= scales[:, self.order]
            return values
        grouped = values.reshape(*self.scales.shape, -1)
        if self.zeros is not None:
            grouped -= self.zeros[:, :, None].astype(real)
        grouped *= scales[:, :, None]
        return values


def uneven(order: Array, groups: int) -> str | None:
    """What is wrong with an index of groups, in which each of them must occur equally often; or None."""
    if order.min() < 0 or order.max() >= groups:
        return f"names groups {order.min()} to {order.max()}, but there are {groups}"
    sizes = np.bincount(order, minlength=groups)
    if (sizes != len(order) // groups).any():
        return f"gives one group {sizes.min()} inputs and another {sizes.max()}"
    return None


def fp8_values(real: np.dtype[Any]) -> Array:
    """The value of each e4m3 byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, two NaN."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    # ldexp is exact: subnormals count eighths of 2^-6, the others have a one in front
    size = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    size[list(FP8_NAN)] = np.nan
    return np.where(byte & 128, -size, size).astype(real)
