"""An opened checkpoint that is known to be a model: family, recipe, and every weight in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import Checkpoint
from allotrope.models.family import Family, Source, choose
from allotrope.models.hfconfig import shown
from allotrope.models.mapping import Mapped, map_weights
from allotrope.models.quantised import config as quantised
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.stored import Stored
from allotrope.models.quantised.wide import Widened, widen
from allotrope.models.readers.open import open_checkpoint
from allotrope.models.recipe import Recipe, slots

Array = np.ndarray[Any, Any]
_DEFAULTS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
    "max_length",
)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def _ids(value: Any) -> list[Any]:
    """One id or a list of them; null and −1 (so the first LLaMA's config) are none."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if one is not None and not (type(one) is int and one == -1)]


@dataclass(frozen=True)
class Model:
    """A checkpoint and what it means. Weights are read one at a time, when asked for."""

    family: Family
    checkpoint: Checkpoint
    mapped: Mapped

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as published."""
        return self.checkpoint.config

    @property
    def recipe(self) -> Recipe:
        """What the model computes."""
        return self.mapped.recipe

    @property
    def sources(self) -> Mapping[str, Source]:
        """Slot → the tensor that fills it."""
        return self.mapped.sources

    @property
    def tokenizer_dir(self) -> Path | None:
        """The folder that may hold a tokenizer."""
        return self.checkpoint.folder

    @cached_property
    def parameters(self) -> int:
        """How many weights the model has; a tied head counts once."""
        return sum(math.prod(shape) for shape in slots(self.recipe).values())

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that the weights are stored in, the commonest (by bytes) first; codes have none."""
        total: dict[str, int] = {}
        stored = self.checkpoint.base if isinstance(self.checkpoint, Widened) else self.checkpoint
        for name in {source.name for source in self.sources.values()} - self._matrices.keys():
            info = stored.tensors[name]
            total[info.dtype] = total.get(info.dtype, 0) + info.nbytes
        return tuple(sorted(total, key=lambda dtype: -total[dtype]))

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Token ids (`bos_token_id`, `eos_token_ids`, `pad_token_id`) and the published sampling `defaults`.

        generation_config.json comes before config.json, as it does in transformers.
        """
        bos, eos, pad = (self._tokens(name, self._stated.get(name)) for name in _SPECIAL)
        return {
            "bos_token_id": next(iter(bos), None),
            "eos_token_ids": eos,
            "pad_token_id": next(iter(pad), None),
            "defaults": {k: v for k, v in self.checkpoint.generation.items() if k in _DEFAULTS and v is not None},
        }

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of `inspect` should know."""
        notes = list(self.mapped.notes)
        for name in _SPECIAL:
            listed = _ids(self._stated.get(name))
            outside = [token for token in listed if type(token) is int and token >= self.recipe.vocab]
            if outside:
                notes.append(f"{name} {shown(outside[0])} is outside the vocabulary of {self.recipe.vocab}: unused")
        return tuple(notes)

    @cached_property
    def _stated(self) -> dict[str, Any]:
        return {**self.config, **{k: v for k, v in self.checkpoint.generation.items() if v is not None}}

    def _tokens(self, name: str, value: Any) -> list[int]:
        """The ids that the vocabulary has. One beyond it can be neither given nor drawn, so it ends or begins
        nothing: transformers' default of GPT-2's 50256 stands in the config of many a smaller model."""
        for token in _ids(value):
            if type(token) is not int or token < 0:
                raise CheckpointError(
                    f"{name} is {shown(value)}, no token id",
                    where=self.checkpoint.origin,
                    remedy="correct config.json or generation_config.json",
                )
        return [token for token in _ids(value) if token < self.recipe.vocab]

    def read(self, slot: str) -> tuple[Array, str]:
        """A slot's weight and its dtype tag (bf16 as uint16). It may be a view of a fused tensor."""
        source, dtype = self.sources[slot], self.dtype_of(slot)
        if source.rows is not None and not source.transposed:
            return self.checkpoint.read_rows(source.name, *source.rows), dtype
        return source.take(self.checkpoint.read(source.name)), dtype

    def dtype_of(self, slot: str) -> str:
        """The dtype tag of a slot's weight."""
        return self.checkpoint.tensors[self.sources[slot].name].dtype

    @property
    def stored_as(self) -> Stored | None:
        """How the weights that are quantised already are stored; None: there are none."""
        return self.checkpoint.stored_as if isinstance(self.checkpoint, Widened) else None

    @cached_property
    def quantised(self) -> tuple[str, ...]:
        """The slots whose weights are codes; `read` gives what these stand for, in fp32."""
        return tuple(slot for slot, source in self.sources.items() if source.name in self._matrices)

    def codes(self, slot: str) -> Codes:
        """The codes of a slot that is `quantised`: its rows of a fused module's."""
        source = self.sources[slot]
        if not isinstance(self.checkpoint, Widened) or source.name not in self._matrices:
            raise KeyError(f"{slot} is not quantised")
        whole = self.checkpoint.codes(source.name)
        return whole if source.rows is None else whole.rows(*source.rows)

    @property
    def codes_nbytes(self) -> Mapping[str, int]:
        """What the `quantised` slots take, scales and all; of slots that share a module, the first takes it all."""
        modules: dict[str, list[str]] = {}
        for slot in self.quantised:
            modules.setdefault(self._matrices[self.sources[slot].name], []).append(slot)
        taken = self.checkpoint.codes_nbytes if isinstance(self.checkpoint, Widened) else {}
        return {slot: taken[m] * (slot == held[0]) for m, held in modules.items() for slot in held}

    @property
    def _matrices(self) -> Mapping[str, str]:
        return self.checkpoint.matrices if isinstance(self.checkpoint, Widened) else {}

    @cached_property
    def originals(self) -> tuple[str, ...]:
        """The original's tensors, by canonical name: what `family.oracle.tensors` takes.

        Biases that must be zero are left out, since the original's class has none either.
        """
        return tuple(name for name, stored in self.mapped.names.items() if stored not in self.mapped.must_be_zero)

    def original_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an original tensor."""
        return self.checkpoint.tensors[self.mapped.names[name]].shape

    def original_dtype(self, name: str) -> str:
        """The dtype tag of an original tensor."""
        return self.checkpoint.tensors[self.mapped.names[name]].dtype

    def read_original(self, name: str) -> Array:
        """An original tensor as it lies in the checkpoint, never through the slots (bf16 as uint16)."""
        return self.checkpoint.read(self.mapped.names[name])

    def check_zero(self) -> None:
        """Read the biases that the model does not have: an error unless all are zero."""
        for name in self.mapped.must_be_zero:
            tensor = self.checkpoint.read(name)
            sign = 0x7FFF if tensor.dtype == np.uint16 else None  # bf16's minus zero is zero too
            if np.any(tensor & sign if sign else tensor):
                raise CheckpointError(
                    f"tensor {name} is not zero, but the config says that there is no such bias",
                    where=self.checkpoint.origin,
                    remedy="correct config.json: the model was trained with biases",
                )

    def check_tied(self) -> None:
        """Read a head stored beside the embedding that it is tied to: an error unless they are equal."""
        for head, embedding in self.mapped.must_equal:
            if not self._same(head, embedding):
                raise CheckpointError(
                    f"{head} differs from {embedding}, but the config says that they are one",
                    where=self.checkpoint.origin,
                    remedy="say tie_word_embeddings false in config.json if the model was trained so",
                )

    def _same(self, first: str, second: str, rows: int = 4096) -> bool:
        tensors = self.checkpoint.tensors
        if tensors[first].dtype != tensors[second].dtype:
            return False
        total = tensors[first].shape[0]
        return all(
            np.array_equal(
                self.checkpoint.read_rows(first, start, min(start + rows, total)),
                self.checkpoint.read_rows(second, start, min(start + rows, total)),
            )
            for start in range(0, total, rows)
        )


def open_model(ref: str | Path, *, allow_pickle: bool = False, seed: int = 0) -> Model:
    """Open a checkpoint and prove, from its headers alone, that it is a whole model of a known family."""
    checkpoint = open_checkpoint(ref, allow_pickle=allow_pickle, seed=seed)
    where = str(checkpoint.folder / "config.json") if checkpoint.folder else checkpoint.origin
    stored = quantised.find(checkpoint.config, checkpoint.folder, where)
    family = choose(checkpoint.config, where)
    said = {key: value for key, value in checkpoint.config.items() if key != quantised.KEY}
    recipe = family.recipe(family.values(said, where))
    if stored is not None:
        checkpoint = widen(checkpoint, stored, family, recipe)
    return Model(family, checkpoint, map_weights(family, recipe, checkpoint.tensors, checkpoint.origin))
