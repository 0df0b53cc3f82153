"""What a checkpoint is and how fast it could at best be, from its headers and the machine's ceilings alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allotrope.errors import UsageError
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.models.dtypes import DTYPES
from allotrope.models.model import Model
from allotrope.models.recipe import Attention, Recipe, slots
from allotrope.ops.kv_rows import COMPUTE, NARROW, row_bytes

BATCHES = (1, 8, 64)
_LOOKED_UP = ("embed.weight", "embed.positions")  # a step reads single rows of these


@dataclass(frozen=True)
class Narrow:
    """Weights that are stored in few bits: how, in words, and the bytes of each by its slot."""

    words: str
    nbytes: Mapping[str, int]


@dataclass(frozen=True)
class Floor:
    """The least time of one decoding step of `batch` sequences: with few tokens so far, and with `max_len`."""

    batch: int
    bytes_short: int
    bytes_full: int
    short_s: float | None  # None: the ceilings were never measured
    full_s: float | None


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` shows."""

    model: Model
    device: Device
    weights: str  # the formats that the prediction is for, in words
    kv: str
    max_len: int
    max_batch: int
    weight_bytes: int
    kv_per_token: int
    floors: tuple[Floor, ...]

    @property
    def codes(self) -> str | None:
        """How the weights are stored that are quantised already, in words."""
        held = self.model.stored_as
        return None if held is None else held.words

    @property
    def kv_bytes(self) -> int:
        """Of `max_batch` sequences of `max_len` tokens."""
        return self.kv_per_token * self.max_len * self.max_batch

    @property
    def fits(self) -> bool:
        """Whether weights and KV cache fit in the device's memory."""
        return self.weight_bytes + self.kv_bytes <= self.device.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        recipe = self.model.recipe
        return {
            "family": self.model.family.name,
            "origin": self.model.checkpoint.origin,
            "parameters": self.model.parameters,
            "stored": {"dtypes": self.model.dtypes, "bytes": self.model.checkpoint.nbytes, "codes": self.codes},
            "parts": dict(describe(recipe)),
            "notes": self.model.notes,
            "dtypes": {"weights": self.weights, "kv": self.kv},
            "bytes": {"weights": self.weight_bytes, "kv_per_token": self.kv_per_token, "kv": self.kv_bytes},
            "limits": {"max_len": self.max_len, "max_batch": self.max_batch, "model_max_len": recipe.max_len},
            "memory_bytes": self.device.memory_bytes,
            "predicted": [
                {
                    "batch": floor.batch,
                    "ms_floor": None if floor.short_s is None else 1e3 * floor.short_s,
                    "ms_floor_full": None if floor.full_s is None else 1e3 * floor.full_s,
                    "bytes_read": floor.bytes_short,
                    "bytes_read_full": floor.bytes_full,
                }
                for floor in self.floors
            ],
            "fits": self.fits,
        }


def inspect(
    model: Model,
    device: Device,
    ceilings: Ceilings | None,
    *,
    weights: str | None = None,
    kv: Sequence[str] = (),
    max_len: int | None = None,
    max_batch: int | None = None,
    narrow: Narrow | None = None,
) -> Inspection:
    """Inspect `model` as it would run on `device`; what is not given is as the checkpoint has it.

    `weights` is the dtype of all weights but those that are `narrow`; `kv` has a format or a dtype for each layer.
    """
    recipe = model.recipe
    for name, value, limit in (("--max-len", max_len, recipe.max_len), ("--max-batch", max_batch, 65536)):
        if value is not None and not 1 <= value <= limit:
            raise UsageError(f"{name} is {value}", remedy=f"give a number from 1 to {limit}")
    if narrow is None and weights is None and model.quantised:
        narrow = Narrow("codes", model.codes_nbytes)
    weights = weights or model.dtypes[0]
    layers, kv_heads, head_dim = recipe.cache_shape
    kv = kv or (weights,) * layers
    length = max_len or recipe.max_len
    sizes = _Sizes(
        weights,
        {s: math.prod(shape) * DTYPES[weights].itemsize for s, shape in slots(recipe).items()}
        | dict(narrow.nbytes if narrow else {}),
        [2 * row_bytes(form if form in NARROW else COMPUTE, kv_heads, head_dim, form) for form in kv],
    )
    batches = [batch for batch in BATCHES if max_batch is None or batch < max_batch]
    if max_batch is not None:
        batches.append(max_batch)
    return Inspection(
        model=model,
        device=device,
        weights=f"{narrow.words}, the rest {weights}" if narrow and narrow.words else weights,
        kv=", ".join(dict.fromkeys(kv)),
        max_len=length,
        max_batch=max_batch or 1,
        weight_bytes=sum(sizes.weights.values()),
        kv_per_token=sum(sizes.kv),
        floors=tuple(_floor(recipe, batch, length, sizes, ceilings) for batch in batches),
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes: of each slot's weight, and of a token's keys and values in each layer; `dtype` is what is computed in."""

    dtype: str
    weights: Mapping[str, int]
    kv: Sequence[int]


def _floor(recipe: Recipe, batch: int, length: int, sizes: _Sizes, ceilings: Ceilings | None) -> Floor:
    """Each step reads every matrix once whatever the batch is, and each sequence's keys and values."""
    tables = _tables(recipe)
    read = sum(nbytes for slot, nbytes in sizes.weights.items() if slot not in tables)
    products = sum(math.prod(s) for slot, s in slots(recipe).items() if len(s) == 2 and slot not in tables)
    row = recipe.hidden * DTYPES[sizes.dtype].itemsize

    def step(context: int) -> tuple[int, float]:
        keys = [min(context, block.attention.window or context) for block in recipe.blocks]
        first = recipe.blocks[0].attention
        cached = sum(count * size for count, size in zip(keys, sizes.kv, strict=True))
        moved = read + batch * row + batch * cached
        return moved, 2.0 * batch * products + 4.0 * batch * sum(keys) * first.heads * first.head_dim

    (short, short_flops), (full, full_flops) = step(1), step(length)
    if ceilings is None:
        return Floor(batch, short, full, None, None)
    times = [ceilings.floor_s(moved, flops, sizes.dtype) for moved, flops in ((short, short_flops), (full, full_flops))]
    return Floor(batch, short, full, times[0], times[1])


def _tables(recipe: Recipe) -> set[str]:
    """The slots of which a step reads single rows."""
    return {slot for slot in _LOOKED_UP if not (recipe.tied and slot == "embed.weight")}


def describe(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The recipe's parts in words, under a short name each."""
    block, layers = recipe.blocks[0], len(recipe.blocks)
    attention, mlp = block.attention, block.mlp
    yield "layers", f"{layers}, {recipe.hidden} wide" + (", norm after the block" if block.post_norm else "")
    grouped = f" over {attention.kv_heads}" if attention.kv_heads != attention.heads else ""
    extras = [
        text
        for text, there in (
            ("biases on q, k, v", attention.bias),
            ("bias on the output", attention.out_bias),
            ("a norm on each head", attention.qk_norm is not None),
        )
        if there
    ]
    yield "attention", ", ".join([f"{attention.heads} heads{grouped}, {attention.head_dim} wide", *extras])
    yield from _windows(recipe)
    if attention.logn is not None:
        yield "log-n", f"queries grow past {attention.logn} tokens"
    shape = f"{mlp.width} wide, {mlp.activation.replace('_', ' ')}"
    yield "MLP", shape + (", gated" if mlp.gated else "") + (", biases" if mlp.bias else "")
    yield "norm", f"{'RMS' if block.norm.kind == 'rms' else 'layer'}, eps {block.norm.eps:g}"
    yield "positions", f"{_positions(recipe, attention)}, up to {recipe.max_len} tokens"
    if recipe.embed_width is not None:
        yield "embedding", f"{recipe.embed_width} wide, projected in and out"
    yield "vocabulary", f"{recipe.vocab}, " + ("head tied to the embedding" if recipe.tied else "head of its own")


def _windows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    windows = [block.attention.window for block in recipe.blocks]
    limited = [window for window in windows if window is not None]
    if limited:
        where = "every layer" if len(limited) == len(windows) else f"{len(limited)} of {len(windows)} layers"
        yield "window", f"{limited[0]} tokens on {where}"


def _positions(recipe: Recipe, attention: Attention) -> str:
    if recipe.positions is not None:
        return f"learned, from row {recipe.positions.offset}" if recipe.positions.offset else "learned"
    rotary = attention.rotary
    if rotary is None:
        return "none"
    whole = "" if rotary.dim == attention.head_dim else f" over {rotary.dim} channels"
    text = f"rotary{whole}, base {rotary.base:g}"
    if rotary.scaling == "qwen_ntk":
        return f"{text}, NTK past {rotary.numbers['original_len']} tokens"
    return text if rotary.scaling == "none" else f"{text}, {rotary.scaling} scaling by {rotary.numbers['factor']:g}"
