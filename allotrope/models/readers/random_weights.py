"""`random:SHAPE`: a checkpoint that nobody trained, for trying shapes, speed and plumbing.

Every value is a function of (seed, tensor's name, index), so any rows of any tensor can be made alone, by any
number of threads, to the same bits on every machine: Philox in counter mode gives 16 bits per value, and
a table of the normal distribution's 65,536 quantiles turns them into it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from allotrope import settings
from allotrope.errors import CheckpointError, UsageError
from allotrope.hw import cores
from allotrope.models import family
from allotrope.models.checkpoint import RANDOM, TensorInfo
from allotrope.models.dtypes import DTYPES, cast
from allotrope.models.readers.random_shapes import SHAPES
from allotrope.models.readers.safetensors_file import check_rows
from allotrope.models.readers.strict_json import read_object

BYTE_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SCHEME = 1  # change it when the same seed gives other values
_BLOCK = 16  # values in one Philox block of 256 bits
_PIECE = 1 << 20  # values that a thread makes at a time; a multiple of _BLOCK
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_NORM, _BIAS = (1.0, 0.1), (0.0, 0.02)  # mean, standard deviation
_LEAST = 0.02  # of matrices, as models are initialised
_SEEDED = re.compile(r"(.+)@([0-9]{1,18})")


@dataclass(frozen=True)
class RandomCheckpoint:
    """A `Checkpoint` whose tensors are made when they are read."""

    origin: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    deviation: float  # of the matrices' values
    seed: int

    @property
    def generation(self) -> dict[str, Any]:
        """Token ids as the byte tokenizer has them, the only one that there is for such a model."""
        return dict(BYTE_TOKENS)

    @property
    def folder(self) -> Path | None:
        """There is none: these models use the byte tokenizer."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor; bf16 as uint16."""
        return self._make(name, 0, self.tensors[name].shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows of one tensor, the same as `read` makes them."""
        info = self.tensors[name]
        check_rows(name, info.shape, start, stop)
        row = info.count // info.shape[0]
        return self._make(name, start * row, (stop - start, *info.shape[1:]))

    def digest(self) -> str:
        """Over the config, the seed and the way in which values are made."""
        return hashlib.sha256(repr((_SCHEME, self.config, self.seed, self.deviation)).encode()).hexdigest()

    def _make(self, name: str, first: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        info = self.tensors[name]
        if len(info.shape) > 1:
            mean, deviation = 0.0, self.deviation
        else:
            mean, deviation = _BIAS if name.endswith(".bias") else _NORM
        table = _table(mean, deviation, info.dtype)
        key = int.from_bytes(hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=16).digest(), "little")
        out = np.empty(shape, DTYPES[info.dtype])
        flat = out.reshape(-1)

        def fill(begin: int) -> None:
            _fill(flat[begin : begin + _PIECE], table, key, first + begin)

        begins = range(0, flat.size, _PIECE)
        if len(begins) == 1:
            fill(0)
        elif begins:
            with ThreadPoolExecutor(min(_threads(), len(begins))) as pool:
                list(pool.map(fill, begins))
        return out


def _fill(out: np.ndarray[Any, Any], table: np.ndarray[Any, Any], key: int, first: int) -> None:
    """The values `first`, `first + 1`, … of the tensor with this key."""
    block, skip = divmod(first, _BLOCK)
    words = np.random.Philox(key=key, counter=block).random_raw(-(-(skip + out.size) // 4))
    picks = words.astype("<u8", copy=False).view("<u2")[skip : skip + out.size]
    # A 16-bit pick cannot miss the table; "wrap" spares NumPy from looking.
    np.take(table, picks, out=out, mode="wrap")


@cache
def _table(mean: float, deviation: float, dtype: str) -> np.ndarray[Any, Any]:
    """The quantiles of a normal distribution in the middle of 65,536 equal steps, rounded to `dtype`."""
    exact = np.array([mean + deviation * z for z in _quantiles()])
    return cast(exact, "fp64", dtype)


@cache
def _quantiles() -> tuple[float, ...]:
    steps, normal = 1 << 16, NormalDist()
    upper = [normal.inv_cdf((i + 0.5) / steps) for i in range(steps // 2, steps)]
    return (*(-z for z in reversed(upper)), *upper)


def _threads() -> int:
    return settings.threads() or cores.usable().count


def open_random(shape: str, seed: int = 0) -> RandomCheckpoint:
    """The checkpoint that `random:` and `shape` name: a known shape or a config.json's path, then `@SEED` or not."""
    seeded = _SEEDED.fullmatch(shape)
    if seeded:
        shape, seed = seeded[1], int(seeded[2])
    if shape in SHAPES:
        config, where = dict(SHAPES[shape]), f"{RANDOM}{shape}"
    elif shape.endswith(".json"):
        path = Path(shape)
        if not path.is_file():
            raise UsageError("no such config.json", where=f"{RANDOM}{shape}", remedy=_known())
        shape = where = str(path.resolve())
        config = read_object(path)
    else:
        near = difflib.get_close_matches(shape, SHAPES, 1, 0.0)[0]
        remedy = f"did you mean {near}? {_known()}" if shape else _known()
        raise UsageError(f"unknown shape {shape[:60]!r}", where=f"{RANDOM}SHAPE", remedy=remedy)
    made = family.choose(config, where)
    recipe = made.recipe(made.values(config, where))
    dtype = _dtype(config, where)
    tensors = {name: TensorInfo(whole, dtype) for name, whole, _ in made.tensors(recipe)}
    # Small models need more than 0.02, or their attention and logits would be nearly flat.
    deviation = max(_LEAST, recipe.hidden**-0.5)
    suffix = f"@{seed}" if seed else ""
    return RandomCheckpoint(f"{RANDOM}{shape}{suffix}", config, tensors, deviation, seed)


def _known() -> str:
    return f"shapes are {' '.join(SHAPES)}, or the path of a config.json"


def _dtype(config: Mapping[str, Any], where: str) -> str:
    """The dtype that the config says the weights are published in; fp32 if it does not."""
    named = config.get("torch_dtype") or config.get("dtype") or "float32"
    tag = _DTYPES.get(str(named).removeprefix("torch."))
    if tag is None:
        raise CheckpointError(
            f"torch_dtype is {str(named)[:60]!r}", where=where, remedy=f"it must be one of {' '.join(_DTYPES)}"
        )
    return tag
