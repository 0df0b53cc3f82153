"""Where each packed weight lies in the engine's safetensors files: a pure function of the plan.

The reader computes the same headers from the plan and compares bytes, so a header cannot lie: nothing
is ever allocated or mapped because a weight file says so.

    | length: 8 bytes | header: JSON, padded with spaces | tensor | tensor | …
                                                         ^ a multiple of 64
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from allotrope.artifact.plan import Plan, Weight
from allotrope.ops.packing import PACKINGS

ALIGN = 64
SHARD_BYTES = 2 * 2**30  # a tensor is never split, so a shard may be one larger tensor
FOLDER = "weights"
STORED: dict[str, tuple[str, type[np.generic]]] = {  # dtype tag → safetensors' name, NumPy's carrier
    "fp32": ("F32", np.float32),
    "fp16": ("F16", np.float16),
    "bf16": ("BF16", np.uint16),
    "int32": ("I32", np.int32),
    "uint8": ("U8", np.uint8),  # codes of narrower formats, and what else is raw bytes
}


@dataclass(frozen=True)
class Entry:
    """One packed weight in a file; `start` counts from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One weight file: its path inside the engine, its leading bytes, what follows, its whole size."""

    path: str
    header: bytes
    entries: tuple[Entry, ...]
    nbytes: int


def packed_shape(weight: Weight) -> tuple[int, ...]:
    """The shape in which a weight is stored."""
    return PACKINGS[weight.packing].shape([shape for _, shape in weight.parts])


def stored_dtype(plan: Plan, weight: Weight) -> str:
    """The dtype tag in which a weight is stored."""
    return plan.dtype if weight.dtype == "compute" else weight.dtype


def shards(plan: Plan) -> tuple[Shard, ...]:
    """All weight files of an engine with this plan, in order."""
    groups = list(_groups(plan))
    return tuple(
        _shard(f"{FOLDER}/{i + 1:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups)
    )


def _groups(plan: Plan) -> Iterator[list[Entry]]:
    """Weights by shard, with offsets from the shard's data.

    safetensors allows no holes, so alignment comes from order: sizes that are multiples of 64 first, then
    of 32, and so on; every tensor then starts at a multiple of the largest power of two in its own size.
    """
    group: list[Entry] = []
    used = 0
    for name, weight in plan.weights.items():
        dtype, shape = stored_dtype(plan, weight), packed_shape(weight)
        nbytes = math.prod(shape) * np.dtype(STORED[dtype][1]).itemsize
        if group and used + nbytes > SHARD_BYTES:
            yield group
            group, used = [], 0
        group.append(Entry(name, dtype, shape, 0, nbytes))
        used += nbytes
    if group:
        yield group


def _shard(path: str, group: list[Entry]) -> Shard:
    ordered = sorted(group, key=lambda entry: -min(ALIGN, entry.nbytes & -entry.nbytes))
    described: dict[str, object] = {"__metadata__": {"format": "allotrope"}}
    ends = [0]
    for entry in ordered:
        ends.append(ends[-1] + entry.nbytes)
        described[entry.name] = {
            "dtype": STORED[entry.dtype][0],
            "shape": list(entry.shape),
            "data_offsets": [ends[-2], ends[-1]],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    header = len(text).to_bytes(8, "little") + text
    entries = tuple(
        Entry(entry.name, entry.dtype, entry.shape, len(header) + start, entry.nbytes)
        for entry, start in zip(ordered, ends, strict=False)
    )
    return Shard(path, header, entries, len(header) + ends[-1])
