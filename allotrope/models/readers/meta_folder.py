"""Meta's own layout of a LLaMA: params.json beside consolidated.NN.pth, one file per model-parallel rank.

It is shown to everybody above as the Hugging Face layout of the same model: names, config, joined shards,
and the rows of q and k reordered. Meta rotates neighbouring channels, (0, 1), (2, 3), …; here, as in Hugging
Face's layout, channel i goes with channel i + half. Per head:

    Meta:  a0 b0 a1 b1 a2 b2 …      here:  a0 a1 a2 … b0 b1 b2 …
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo
from allotrope.models.readers.hf_folder import contained, digest_of
from allotrope.models.readers.meta_config import derive_config
from allotrope.models.readers.pickled import convert
from allotrope.models.readers.safetensors_file import SafetensorsFile, check_rows
from allotrope.models.readers.safetensors_header import shown
from allotrope.models.readers.strict_json import read_object

SHARDS = r"consolidated\.[0-9]{2}\.pth"
_REPLICATED = None
# Meta's name: (the name here, the axis along which the ranks' parts are joined)
_OUTER = {
    "norm.weight": ("model.norm.weight", _REPLICATED),
    "output.weight": ("lm_head.weight", 0),
}
_EMBEDDING = ("tok_embeddings.weight", "model.embed_tokens.weight")  # split by columns, from LLaMA 3 on by rows
_INNER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", _REPLICATED),
    "ffn_norm.weight": ("post_attention_layernorm.weight", _REPLICATED),
}
_LAYER = re.compile(r"layers\.(0|[1-9][0-9]*)\.(.+)")
_DERIVED = "rope.freqs"  # follows from the config


@dataclass(frozen=True)
class _Part:
    """Where a tensor's parts lie, how they are joined, and by how many heads its rows are reordered."""

    source: str
    axis: int | None
    heads: int
    info: TensorInfo


@dataclass(frozen=True)
class MetaCheckpoint:
    """A `Checkpoint` that joins and reorders as it reads."""

    folder: Path
    config: dict[str, Any]
    ranks: tuple[SafetensorsFile, ...]
    parts: Mapping[str, _Part]
    original: str

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def generation(self) -> dict[str, Any]:
        """Meta's layout has none."""
        return {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by its Hugging Face name."""
        return {name: part.info for name, part in self.parts.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.info.nbytes for part in self.parts.values())

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor, joined and reordered."""
        part = self.parts[name]
        if part.axis is None:
            first, *others = (rank.read(part.source) for rank in self.ranks)
            for rank, other in zip(self.ranks[1:], others, strict=True):
                if first.tobytes() != other.tobytes():
                    raise CheckpointError(
                        f"tensor {shown(part.source)} differs from rank 0's, but every rank should have the same",
                        where=str(rank.path),
                    )
            return first
        found = [rank.read(part.source) for rank in self.ranks]
        joined = found[0] if len(found) == 1 else np.concatenate(found, axis=part.axis)
        return _halves(joined, part.heads) if part.heads else joined

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows of one tensor; without reading the rest, where the ranks hold parts of each row."""
        part = self.parts[name]
        check_rows(name, part.info.shape, start, stop)
        if part.axis == 1:
            return np.concatenate([rank.read_rows(part.source, start, stop) for rank in self.ranks], axis=1)
        if part.axis == 0 and not part.heads:
            size = part.info.shape[0] // len(self.ranks)
            bounds = [[min(max(row - i * size, 0), size) for row in (start, stop)] for i in range(len(self.ranks))]
            parts = zip(self.ranks, bounds, strict=True)
            return np.concatenate([rank.read_rows(part.source, *bound) for rank, bound in parts])
        return self.read(name)[start:stop]

    def digest(self) -> str:
        """Over the config and the pickled originals."""
        return digest_of([self.config, self.original], ())


def open_folder(folder: Path, allow_pickle: bool) -> MetaCheckpoint:
    """The checkpoint in a folder in Meta's layout."""
    params_file = contained(folder, "params.json")
    params = read_object(params_file) if params_file else {}
    names = sorted(path.name for path in folder.iterdir() if re.fullmatch(SHARDS, path.name))
    wanted = [f"consolidated.{i:02d}.pth" for i in range(len(names))]
    if names != wanted:
        missing = next(name for name in wanted if name not in names)
        raise CheckpointError(f"{missing} is missing", where=str(folder), remedy="download it again")
    ranks, key = convert(folder, names, allow_pickle)
    where = str(folder / "params.json")
    wholes = {source: _whole(source, ranks) for source in ranks[0].tensors if source != _DERIVED}
    config = derive_config(params, {source: info for source, (_, info, _) in wholes.items()}, where)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    parts = dict[str, _Part]()
    for source, (name, info, axis) in wholes.items():
        reorder = next((count for module, count in heads.items() if f".{module}." in name), 0)
        if reorder and info.shape[0] % (2 * reorder):
            raise CheckpointError(
                f"tensor {shown(source)} has {info.shape[0]} rows, which {reorder} heads cannot share", where=where
            )
        parts[name] = _Part(source, axis, reorder, info)
    return MetaCheckpoint(folder, config, ranks, parts, key)


def _whole(source: str, ranks: tuple[SafetensorsFile, ...]) -> tuple[str, TensorInfo, int | None]:
    """A tensor's Hugging Face name, whole shape and axis of the joint; every rank holds an equal part of it."""
    first = ranks[0].tensors[source]
    for rank in ranks[1:]:
        extra = set(rank.tensors) - set(ranks[0].tensors)
        if extra or rank.tensors.get(source) != first:
            raise CheckpointError(f"tensor {shown(min(extra or {source}))} is not as in rank 0", where=str(rank.path))
    name, axis = _place(source, ranks[0])
    if axis is None:
        return name, first, None
    if len(first.shape) != 2:
        shape = list(first.shape)
        raise CheckpointError(f"tensor {shown(source)} has shape {shape}, not two axes", where=str(ranks[0].path))
    rows, columns = first.shape
    joined = (rows * len(ranks), columns) if axis == 0 else (rows, columns * len(ranks))
    return name, TensorInfo(joined, first.dtype), axis


def _place(source: str, rank: SafetensorsFile) -> tuple[str, int | None]:
    """The Hugging Face name of one of Meta's tensors, and the axis along which it is split over the ranks."""
    if source == _EMBEDDING[0]:
        norm = rank.tensors.get("norm.weight")
        by_rows = norm is not None and rank.tensors[source].shape[-1:] == norm.shape
        return _EMBEDDING[1], 0 if by_rows else 1
    layer = _LAYER.fullmatch(source)
    if layer and layer[2] in _INNER:
        name, axis = _INNER[layer[2]]
        return f"model.layers.{layer[1]}.{name}", axis
    if source in _OUTER:
        return _OUTER[source]
    raise CheckpointError(f"tensor {shown(source)} is none of LLaMA's", where=str(rank.path))


def _halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head from pairs to halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
