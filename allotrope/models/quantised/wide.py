"""A checkpoint in codes, seen as the wide tensors that it stands for: what reads tensors need not know of layouts.

stored   h.0.attn.c_attn.qweight, .qzeros, .scales, .g_idx        .bias  fp16
seen     h.0.attn.c_attn.weight  fp32, as its module has it       .bias  fp32, for a module has one dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import Checkpoint, TensorInfo
from allotrope.models.dtypes import FLOATS, cast
from allotrope.models.family import Family
from allotrope.models.mapping import find_prefix
from allotrope.models.quantised.codes import Array, Codes
from allotrope.models.quantised.headers import check_headers
from allotrope.models.quantised.modules import Split, read, split
from allotrope.models.quantised.stored import Stored
from allotrope.models.recipe import Recipe

WIDE = "fp32"  # a code of up to 9 bits times a 16-bit scale is exact in it


@dataclass(frozen=True)
class Widened:
    """A `Checkpoint`. The codes of the module read last are kept, for it is read in pieces."""

    stored_as: Stored
    base: Checkpoint
    split: Split
    transposed: Mapping[str, bool]  # quantised module → whether its matrix lies [in, out] when it is wide
    tensors: Mapping[str, TensorInfo]
    _kept: dict[str, Codes] = field(default_factory=dict, repr=False)

    @property
    def origin(self) -> str:
        """As of what is stored, like all that follows here."""
        return self.base.origin

    @property
    def config(self) -> dict[str, Any]:
        """As published."""
        return self.base.config

    @property
    def generation(self) -> dict[str, Any]:
        """As published."""
        return self.base.generation

    @property
    def folder(self) -> Path | None:
        """Where the tokenizer lies."""
        return self.base.folder

    @property
    def nbytes(self) -> int:
        """Of the codes, not of what they stand for."""
        return self.base.nbytes

    @property
    def codes_nbytes(self) -> Mapping[str, int]:
        """Of what is stored for each quantised module, its bias left out."""
        sizes = self.base.tensors
        return {m: sum(sizes[name].nbytes for name in parts.values()) for m, parts in self.split.modules.items()}

    def digest(self) -> str:
        """Of the files."""
        return self.base.digest()

    @cached_property
    def matrices(self) -> Mapping[str, str]:
        """Wide matrix → its quantised module."""
        return {f"{module}.weight": module for module in self.transposed}

    def codes(self, name: str) -> Codes:
        """The codes behind a wide matrix, [out, in] however the matrix lies."""
        module = self.matrices[name]
        if module not in self._kept:
            self._kept.clear()
            self._kept[module] = read(self.split, module, self.base.read, self.stored_as, self.origin)
        return self._kept[module]

    def read(self, name: str) -> Array:
        """One tensor; a wide matrix is dequantised."""
        return self.read_rows(name, 0, self.tensors[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Rows of a tensor."""
        if name in self.matrices:
            codes = self.codes(name)
            if self.transposed[self.matrices[name]]:
                return np.ascontiguousarray(codes.dequantised(WIDE).T[start:stop])
            return codes.rows(start, stop).dequantised(WIDE)
        rows = self.base.read_rows(name, start, stop)
        stored, seen = self.base.tensors[name].dtype, self.tensors[name].dtype
        return rows if stored == seen else cast(rows, stored, seen)


def widen(checkpoint: Checkpoint, stored: Stored, family: Family, recipe: Recipe) -> Widened:
    """Prove from the headers that each quantised module is one of the family's, whole and of the right shape."""
    tensors, where = checkpoint.tensors, checkpoint.origin
    found = split(tensors, stored, where)
    seen = {name: tensors[name] for name in found.plain}
    canonical, prefix = family.prefixes[0], find_prefix(family, seen)
    transposed: dict[str, bool] = {}
    for name, shape, parts in family.tensors(recipe):
        stem, _, kind = name.rpartition(".")
        module = prefix + stem.removeprefix(canonical) if stem.startswith(canonical) else stem
        bias = f"{module}.bias"
        if module not in found.modules:
            continue
        if kind == "bias" and bias in seen and seen[bias].dtype in FLOATS:
            seen[bias] = TensorInfo(seen[bias].shape, WIDE)
        elif kind == "weight":
            slot, source = next(iter(parts.items()))
            if slot == "embed.weight":
                problem = f"the embedding, {module}, is quantised, but it is no linear layer"
                raise CheckpointError(problem, where=where, remedy="give the original checkpoint instead")
            out, into = shape[::-1] if source.transposed else shape
            check_headers(found.modules[module], stored, (out, into), tensors, where)
            transposed[module] = source.transposed
            seen[f"{module}.weight"] = TensorInfo(shape, WIDE)
    strangers = found.modules.keys() - transposed.keys()  # of which the mapping will say that they are
    seen |= {name: tensors[name] for module in strangers for name in found.modules[module].values()}
    return Widened(stored, checkpoint, found, transposed, seen)
