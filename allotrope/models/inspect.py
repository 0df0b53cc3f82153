"""What a checkpoint is and how fast it could at best be, from its headers and the machine's ceilings alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from allotrope.errors import UsageError
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.models.dtypes import DTYPES
from allotrope.models.model import Model
from allotrope.models.recipe import Attention, Recipe, slots

BATCHES = (1, 8, 64)
_LOOKED_UP = ("embed.weight", "embed.positions")  # a step reads single rows of these


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
    weights: str  # the dtypes that the prediction is for
    kv: str
    max_len: int
    max_batch: int
    weight_bytes: int
    kv_per_token: int
    floors: tuple[Floor, ...]

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
            "stored": {"dtypes": self.model.dtypes, "bytes": self.model.checkpoint.nbytes},
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
    kv: str | None = None,
    max_len: int | None = None,
    max_batch: int | None = None,
) -> Inspection:
    """Inspect `model` as it would run on `device`; what is not given is as the checkpoint has it."""
    recipe = model.recipe
    for name, value, limit in (("--max-len", max_len, recipe.max_len), ("--max-batch", max_batch, 65536)):
        if value is not None and not 1 <= value <= limit:
            raise UsageError(f"{name} is {value}", remedy=f"give a number from 1 to {limit}")
    weights = weights or model.dtypes[0]
    kv = kv or weights
    length = max_len or recipe.max_len
    size, kv_size = DTYPES[weights].itemsize, DTYPES[kv].itemsize
    layers, kv_heads, head_dim = recipe.cache_shape
    batches = [batch for batch in BATCHES if max_batch is None or batch < max_batch]
    if max_batch is not None:
        batches.append(max_batch)
    return Inspection(
        model=model,
        device=device,
        weights=weights,
        kv=kv,
        max_len=length,
        max_batch=max_batch or 1,
        weight_bytes=model.parameters * size,
        kv_per_token=2 * layers * kv_heads * head_dim * kv_size,
        floors=tuple(_floor(recipe, batch, length, (weights, size, kv_size), ceilings) for batch in batches),
    )


def _floor(recipe: Recipe, batch: int, length: int, sizes: tuple[str, int, int], ceilings: Ceilings | None) -> Floor:
    """Each step reads every matrix once whatever the batch is, and each sequence's keys and values."""
    dtype, size, kv_size = sizes
    read, looked_up = _weights_read(recipe)
    products = sum(math.prod(shape) for slot, shape in slots(recipe).items() if len(shape) == 2) - looked_up

    def step(context: int) -> tuple[int, float]:
        keys = sum(min(context, block.attention.window or context) for block in recipe.blocks)
        first = recipe.blocks[0].attention
        kv_width, q_width = first.kv_heads * first.head_dim, first.heads * first.head_dim
        moved = (read + batch * recipe.hidden) * size + batch * keys * 2 * kv_width * kv_size
        return moved, 2.0 * batch * products + 4.0 * batch * keys * q_width

    (short, short_flops), (full, full_flops) = step(1), step(length)
    if ceilings is None:
        return Floor(batch, short, full, None, None)
    times = [ceilings.floor_s(moved, flops, dtype) for moved, flops in ((short, short_flops), (full, full_flops))]
    return Floor(batch, short, full, times[0], times[1])


def _weights_read(recipe: Recipe) -> tuple[int, int]:
    """How many weights a step reads whole, and how many lie in tables of which it reads rows only."""
    sizes = {slot: math.prod(shape) for slot, shape in slots(recipe).items()}
    rows_only = [slot for slot in _LOOKED_UP if slot in sizes and not (recipe.tied and slot == "embed.weight")]
    looked_up = sum(sizes[slot] for slot in rows_only)
    return sum(sizes.values()) - looked_up, looked_up


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
