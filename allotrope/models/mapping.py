"""Which tensor of a checkpoint fills which slot: proven from the headers alone, nothing left over, nothing open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo
from allotrope.models.family import Family, Shape, Source
from allotrope.models.hfconfig import shown
from allotrope.models.recipe import Block, Norm, Recipe

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Mapped:
    """A recipe and the tensors that fill it.

    `names` gives each canonical tensor name as the checkpoint has it (prefixes differ). What the headers
    cannot show is left to be checked on the values: `must_be_zero` biases that the model does not have, and
    `must_equal`, a stored head beside the embedding that it is tied to.
    """

    recipe: Recipe
    sources: Mapping[str, Source]  # slot → where its weight lies, under the checkpoint's own names
    names: Mapping[str, str]
    must_be_zero: tuple[str, ...] = ()
    must_equal: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()  # tensors that hold no weights
    notes: tuple[str, ...] = ()  # what a reader of `inspect` should know


def map_weights(family: Family, recipe: Recipe, tensors: Mapping[str, TensorInfo], where: str) -> Mapped:
    """Fill every slot of `recipe` from `tensors`; every tensor must be used or known to hold no weights."""
    prefix = find_prefix(family, tensors)
    canonical = family.prefixes[0]

    def actual(name: str) -> str:
        return prefix + name.removeprefix(canonical) if name.startswith(canonical) else name

    notes: list[str] = []
    if family.biases_may_be_absent:
        recipe, notes = _without_absent_biases(family, recipe, tensors, actual, where)
    sources: dict[str, Source] = {}
    names: dict[str, str] = {}
    for name, shape, parts in family.tensors(recipe):
        stored = actual(name)
        _check_tensor(stored, shape, parts, tensors, where)
        names[name] = stored
        sources |= {slot: replace(source, name=stored) for slot, source in parts.items()}
    zero = {actual(name): (name, shape) for name, shape in _spare_biases(family, recipe) if actual(name) in tensors}
    head = actual(_embedding(family, "head")) if recipe.tied else ""
    tied = {head: actual(_embedding(family, "embed"))} if head in tensors else {}
    names |= {name: stored for stored, (name, _) in zero.items()}
    if tied:
        names[_embedding(family, "head")] = head
        _check_shape(head, tensors[next(iter(tied.values()))].shape, tensors, where)
        notes.append("head stored beside the embedding that it is tied to")
    for stored, (_, shape) in zero.items():
        _check_shape(stored, shape, tensors, where)
    rest = [name for name in tensors if name not in set(names.values())]
    unknown = [name for name in rest if not name.endswith(family.unused)]
    if unknown:
        raise CheckpointError(
            f"tensor {shown(unknown[0])} is no part of {family.name}"
            + (f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else ""),
            where=where,
            remedy="config.json may describe another model; nothing is ever dropped silently",
        )
    if zero:
        notes.append(f"{len(zero)} stored biases that the config does not have: all must be zero")
    return Mapped(recipe, sources, names, tuple(zero), tuple(tied.items()), tuple(rest), tuple(notes))


def _embedding(family: Family, path: str) -> str:
    """The canonical name of the embedding's (or the head's) matrix."""
    return next(f"{part.name}.weight" for part in family.outer if path in part.paths)


def find_prefix(family: Family, tensors: Mapping[str, TensorInfo]) -> str:
    """The beginning that this checkpoint's names have: the one under which it has an embedding."""
    canonical = family.prefixes[0]
    stem = _embedding(family, "embed").removeprefix(canonical)
    return next((prefix for prefix in family.prefixes if prefix + stem in tensors), canonical)


def _check_tensor(
    name: str, shape: Shape, parts: Mapping[str, Source], tensors: Mapping[str, TensorInfo], where: str
) -> None:
    if name not in tensors:
        slot = next(iter(parts))
        remedy = "the checkpoint is incomplete, or config.json describes another model"
        if slot == "head.weight":
            remedy = "if the head is the embedding, say tie_word_embeddings true in config.json"
        raise CheckpointError(f"no tensor {name} for {slot}", where=where, remedy=remedy)
    _check_shape(name, shape, tensors, where)


def _check_shape(name: str, shape: Shape, tensors: Mapping[str, TensorInfo], where: str) -> None:
    found = tensors[name]
    if found.shape != shape:
        raise CheckpointError(
            f"tensor {name} is {list(found.shape)}, the config makes it {list(shape)}",
            where=where,
            remedy="correct config.json, or take both files from the original",
        )
    if found.dtype not in ("fp32", "fp16", "bf16"):
        remedy = "convert it to fp32, fp16 or bf16"
        raise CheckpointError(f"tensor {name} has dtype {found.dtype}", where=where, remedy=remedy)


def _spare_biases(family: Family, recipe: Recipe) -> Iterator[tuple[str, Shape]]:
    """Biases that the recipe does not have, beside weights that it has: they may be stored if they are zero."""
    needed = {name: parts for name, _, parts in family.tensors(recipe)}
    for name, parts in needed.items():
        stem, _, last = name.rpartition(".")
        bias = f"{stem}.bias"
        if last == "weight" and bias not in needed and not next(iter(parts)).startswith("embed"):
            source = next(iter(parts.values()))
            yield bias, (source.shape[1] if source.transposed else source.shape[0],)


def _without_absent_biases(
    family: Family,
    recipe: Recipe,
    tensors: Mapping[str, TensorInfo],
    actual: Callable[[str], str],
    where: str,
) -> tuple[Recipe, list[str]]:
    """The recipe without its linear biases, or its norm biases, where the checkpoint has none of them."""
    needed = [(actual(name), next(iter(parts))) for name, _, parts in family.tensors(recipe) if name.endswith(".bias")]
    notes = []
    for kind, drop in (("linear", _drop_linear_biases), ("norm", _drop_norm_biases)):
        group = [name for name, slot in needed if slot.endswith("norm.bias") is (kind == "norm")]
        missing = [name for name in group if name not in tensors]
        if not missing:
            continue
        if len(missing) < len(group):
            raise CheckpointError(
                f"no tensor {missing[0]}, though {len(group) - len(missing)} of {len(group)} {kind} biases are there",
                where=where,
                remedy="a model has all of them or none: the checkpoint is incomplete",
            )
        recipe = drop(recipe)
        notes.append(f"no {kind} biases")
    return recipe, notes


def _drop_linear_biases(recipe: Recipe) -> Recipe:
    def bare(block: Block) -> Block:
        attention = replace(block.attention, bias=False, out_bias=False)
        return replace(block, attention=attention, mlp=replace(block.mlp, bias=False))

    return replace(recipe, blocks=tuple(bare(block) for block in recipe.blocks), head_bias=False)


def _drop_norm_biases(recipe: Recipe) -> Recipe:
    def bare(norm: Norm) -> Norm:
        return replace(norm, bias=False)

    blocks = tuple(replace(block, norm=bare(block.norm)) for block in recipe.blocks)
    return replace(recipe, blocks=blocks, final_norm=recipe.final_norm and bare(recipe.final_norm))


def restore(sources: Mapping[str, Source], weights: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of reading: the checkpoint's tensors out of the slots' weights."""
    grouped: dict[str, list[str]] = {}
    for slot, source in sources.items():
        grouped.setdefault(source.name, []).append(slot)
    return {
        name: _assemble([sources[slot] for slot in slots], [weights[slot] for slot in slots])
        for name, slots in grouped.items()
    }


def _assemble(sources: Sequence[Source], parts: Sequence[Array]) -> Array:
    ordered = sorted(zip(sources, parts, strict=True), key=lambda pair: pair[0].rows or (0, 0))
    whole = np.concatenate([part for _, part in ordered], axis=0)
    return np.ascontiguousarray(whole.T) if sources[0].transposed else whole
