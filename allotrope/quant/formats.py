"""What a quantised weight is: its format, its codes and scales, and the bytes in which they are stored.

A weight is [out, in] and `weight ≈ (code − zero) · scale`, with one scale (and zero) per row, or per `group`
neighbours of a row:

    codes   [out, in]       int8: −127 … 127; int4: −8 … 7, asymmetric 0 … 15 (each in an int8); fp8: e4m3
    scales  [out, groups]   fp32 per row, fp16 in groups (fp32 of what others have quantised, if fp16 rounded them)
    zeros   [out, groups]   uint8, asymmetric only

Scales are rounded to what is stored before any code is computed, so that a weight means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from allotrope.errors import UsageError
from allotrope.ops import codes as codes_of

Name = Literal["int8", "int4", "fp8"]
NAMES: tuple[Name, ...] = get_args(Name)
GROUPS = (32, 64, 128)
_DEFAULT_GROUP = 32  # of int4: a row's one scale is too coarse for 16 levels
_BITS = {"int8": 8, "int4": 4, "fp8": 8}
# The codes that rounding may give. int8 leaves −128 out: kernels that multiply by absolute value and sign cannot
# negate it. What others have quantised may hold it all the same.
_RANGE = {"int8": (-127, 127), "int4": (-8, 7), "fp8": (-448, 448)}


@dataclass(frozen=True)
class Format:
    """How a weight is stored. `group` None: one scale per row (output channel)."""

    name: Name
    group: int | None = None
    symmetric: bool = True
    fp32_scales: bool = False  # in groups, too

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UsageError(f"weight format is {self.name!r}; it must be one of {', '.join(NAMES)}")
        if self.group is not None and (self.group not in GROUPS or isinstance(self.group, bool)):
            allowed = ", ".join(map(str, GROUPS))
            raise UsageError(
                f"group size is {self.group!r}; it must be one of {allowed}, or none for one scale per row"
            )
        if self.name == "fp8" and self.group is not None:
            raise UsageError(f"group size is {self.group}; fp8 has one scale per row, so it must be none")
        if self.name != "int4" and not self.symmetric:
            raise UsageError(f"{self.name} is to be asymmetric; only int4 can be, {self.name} must be symmetric")

    @property
    def bits(self) -> int:
        """Of one code."""
        return _BITS[self.name]

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest code (fp8: value) that rounding may give."""
        return _RANGE[self.name] if self.symmetric else (0, 15)

    @property
    def top(self) -> int:
        """The code at which the largest magnitude of a group comes to lie; asymmetric: the steps between its ends."""
        return self.range[1]

    @property
    def code_dtype(self) -> torch.dtype:
        """Of the logical codes, one element per weight."""
        return torch.float8_e4m3fn if self.name == "fp8" else torch.int8

    @property
    def scale_dtype(self) -> torch.dtype:
        """Of the scales as stored: few may be wide, many not."""
        return torch.float32 if self.group is None or self.fp32_scales else torch.float16

    def groups(self, width: int) -> int:
        """How many scales a row has."""
        return 1 if self.group is None else width // self.group

    def check_shape(self, shape: Sequence[int], path: str) -> None:
        """Refuse a weight that cannot be stored like this."""
        if len(shape) != 2 or not all(shape):
            raise UsageError(f"its shape is {tuple(shape)}; only matrices [out, in] are quantised", where=path)
        width = shape[1]
        if self.group is not None and width % self.group:
            fitting = [str(group) for group in GROUPS if width % group == 0]
            remedy = f"take groups of {' or '.join(fitting)}" if fitting else "keep this weight wide, or take int8"
            raise UsageError(
                f"group size is {self.group}; it must divide the width, {width}", where=path, remedy=remedy
            )
        if self.name == "int4" and width % 2:
            raise _odd(width, path)

    def nbytes(self, shape: Sequence[int]) -> int:
        """What a weight of this shape takes: codes, scales and zeros."""
        out, width = shape
        scales = out * self.groups(width)
        return out * width * self.bits // 8 + scales * (self.scale_dtype.itemsize + (not self.symmetric))

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """Scales and zeros counted."""
        return 8 * self.nbytes(shape) / (shape[0] * shape[1])

    def to_json(self) -> dict[str, Any]:
        """Plain values; `Format(**…)` is the inverse."""
        return asdict(self)

    def __str__(self) -> str:
        lie = "per channel" if self.group is None else f"in groups of {self.group}"
        return f"{self.name} {lie}" + ("" if self.symmetric else ", asymmetric")


@dataclass(frozen=True)
class Store:
    """A weight kept as a 16-bit float, and widened to be computed with."""

    name: Literal["fp16", "bf16"]

    @property
    def bits(self) -> int:
        """Of one weight."""
        return 16

    def nbytes(self, shape: Sequence[int]) -> int:
        """What a weight of this shape takes."""
        return 2 * shape[0] * shape[1]

    def __str__(self) -> str:
        return self.name


STORES = (Store("fp16"), Store("bf16"))


def parse_format(name: str, group_size: int | None = None, symmetric: bool | None = None) -> Format:
    """A format as users say it; what they leave open is int4's groups of 32, and symmetric."""
    known: Mapping[str, Name] = {name: name for name in NAMES}
    word = name.strip().lower()
    if word not in known:
        raise UsageError(f"weight format is {name!r}; it must be one of {', '.join(NAMES)}")
    group = _DEFAULT_GROUP if word == "int4" and group_size is None else group_size
    return Format(known[word], group, symmetric is not False)


@dataclass(frozen=True, eq=False)
class Quantised:
    """One weight in its format; see this module's head for shapes and dtypes, which are checked at birth."""

    format: Format
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.format.check_shape(self.shape, "codes")
        side = (self.shape[0], self.format.groups(self.shape[1]))
        _expect("codes", self.codes, self.format.code_dtype, self.shape)
        _expect("scales", self.scales, self.format.scale_dtype, side)
        if (self.zeros is None) != self.format.symmetric:
            raise UsageError(f"zeros are {'missing' if self.zeros is None else 'given'}; {self.format} is otherwise")
        if self.zeros is not None:
            _expect("zeros", self.zeros, torch.uint8, side)

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in]."""
        return tuple(self.codes.shape)

    def to(self, device: str) -> Quantised:
        """The same on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return Quantised(self.format, self.codes.to(device), self.scales.to(device), zeros)


def dequantise(quantised: Quantised, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] that it stands for: computed in fp32 and rounded once; in fp64 exactly."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes, (out, width) = quantised.codes, quantised.shape
    zeros = None if quantised.zeros is None else quantised.zeros.unsqueeze(-1)
    grouped = codes.view(out, quantised.format.groups(width), -1)
    return decode(grouped, quantised.scales.unsqueeze(-1), zeros, wide).view(out, width).to(dtype)


def decode(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """`(code − zero) · scale`, computed in `dtype`; scales and zeros broadcast over the codes."""
    steps = codes.to(dtype) if zeros is None else codes.to(dtype) - zeros.to(dtype)
    return steps * scales.to(dtype)


def pack(codes: torch.Tensor, form: Format) -> torch.Tensor:
    """Codes as the bytes stored, uint8: [out, in/2] for int4 (the even column in the low half), else [out, in]."""
    if form.name != "int4":
        return codes.contiguous().view(torch.uint8)
    if codes.shape[-1] % 2:
        raise _odd(codes.shape[-1], "codes")
    low, high = form.range
    if codes.numel() and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise UsageError(f"a code is outside {low} … {high} and does not fit into four bits", where="codes")
    nibbles = codes.contiguous().view(torch.uint8) & 15
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack(packed: torch.Tensor, form: Format) -> torch.Tensor:
    """The exact inverse of `pack`, for every byte that there is."""
    return codes_of.unpacked(packed.contiguous(), form.name, form.symmetric)


def _odd(width: int, path: str) -> UsageError:
    return UsageError(f"its width is {width}; int4 lies two to a byte, so it must be even", where=path)


def _expect(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found, due = f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape}"
        raise UsageError(f"{name} are {found}; they must be {due}".replace("torch.", ""))
