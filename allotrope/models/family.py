"""What a family is: the rules for its config, where its weights lie, and its recipe.

A family file in `families/` builds one `Family`; a variant derives from its parent and states only what
differs. Nothing here reads a file or knows a particular family.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import numpy as np

from allotrope.errors import CheckpointError
from allotrope.models import families, hfconfig
from allotrope.models.hfconfig import Key, Values
from allotrope.models.recipe import Recipe, slots

Shape = tuple[int, ...]
Tensors = Mapping[str, np.ndarray[Any, Any]]
LAYER = "{i}"


@dataclass(frozen=True)
class Module:
    """One of the original's modules and the slot path (or paths) that its `.weight` and `.bias` fill.

    Several paths lie one under the other along the output axis, in that order. `transposed` matrices lie
    [in, out]. In a family's `inner` modules both names are relative to the block.
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False


def module(name: str, *paths: str, transposed: bool = False) -> Module:
    """A `Module`, written short."""
    return Module(name, paths, transposed)


@dataclass(frozen=True)
class Source:
    """Where a slot's weight lies: `rows` of the tensor `name`, after transposing it if `transposed`."""

    name: str
    shape: Shape  # that the whole tensor must have
    transposed: bool = False
    rows: tuple[int, int] | None = None  # None: all

    def take(self, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The slot's weight out of the whole tensor: a view."""
        lying = tensor.T if self.transposed and tensor.ndim == 2 else tensor
        return lying if self.rows is None else lying[self.rows[0] : self.rows[1]]


@dataclass(frozen=True)
class Site:
    """Where a call's output can be observed in the oracle: the module's name, and which of its output
    columns (None: all) when one module computes several calls."""

    module: str
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Oracle:
    """How transformers computes the same model.

    `config_class` and `model_class` are names in `transformers`. `config` turns the checkpoint's config
    into the class's keyword arguments. `tensors` turns original tensors (canonical names, NumPy, bf16 as
    uint16) into the class's; it works on any subset of them, one module's tensors at least, so that a
    large model can be streamed. `family` names the family whose modules the class has (None: its own).
    `max_len`, given a config, is the longest sequence for which the class is the same model (None: any).
    """

    config_class: str
    model_class: str
    family: str | None = None
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    tensors: Callable[[Mapping[str, Any], Tensors], dict[str, np.ndarray[Any, Any]]] = lambda _, tensors: dict(tensors)
    max_len: Callable[[Mapping[str, Any]], int | None] = lambda _: None


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    `block` is the name of a block's module, with `{i}` for its number; `inner` modules are inside it and
    `outer` ones elsewhere. `prefixes` are the beginnings that the module names may have in files, the
    canonical one first. `unused` are endings of tensors that hold no weights. `code` are the class
    references of the publisher's own code that an `auto_map` may name; they are compared, never followed.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    keys: tuple[Key, ...]
    recipe: Callable[[Values], Recipe]
    outer: tuple[Module, ...]
    block: str
    inner: tuple[Module, ...]
    oracle: Oracle
    prefixes: tuple[str, ...] = ("",)
    ignored: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    biases_may_be_absent: bool = False  # all linear biases, or all norm biases: then there are none

    parent: str | None = None
    own: Mapping[str, Any] = field(default_factory=dict)  # what a derived family states, as `facts` names it

    def derive(
        self, name: str, *, keys: tuple[Key, ...] = (), inner: tuple[Module, ...] = (), **changes: Any
    ) -> Family:
        """A variant: `keys` and `inner` modules replace the parent's of the same name, or are added."""
        named = {key.name: key for key in self.keys} | {key.name: key for key in keys}
        modules = {module.name: module for module in self.inner} | {module.name: module for module in inner}
        own = {**_facts("key", keys), **_facts("module", inner), **changes}
        together = {**changes, "keys": tuple(named.values()), "inner": tuple(modules.values())}
        return replace(self, name=name, parent=self.name, own=own, **together)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the family says, its parent's part included, each thing under a name."""
        whole = ("keys", "inner", "parent", "own", "name")
        rest = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in whole}
        return {**_facts("key", self.keys), **_facts("module", self.inner), **rest}

    @property
    def stated(self) -> Mapping[str, Any]:
        """What its own file says."""
        return self.own if self.parent is not None else self.facts

    def values(self, config: Mapping[str, Any], where: str = "config.json") -> Values:
        """The config's settings, all keys consumed and all values within bounds."""
        self._refuse_code(config, where)
        return hfconfig.read(config, self.keys, self.ignored | {"auto_map", "trust_remote_code"}, where)

    def _refuse_code(self, config: Mapping[str, Any], where: str) -> None:
        remedy = f"architectures supported without it: {', '.join(architectures())}"
        if config.get("trust_remote_code"):
            raise CheckpointError("trust_remote_code asks to run code, which is never run", where=where, remedy=remedy)
        named = config.get("auto_map", {})
        references = named.items() if isinstance(named, Mapping) else [("auto_map", named)]
        for key, reference in references:
            if self.code.get(key) != reference:
                problem = f"auto_map names code to run ({hfconfig.shown(reference)}), which is never run"
                raise CheckpointError(problem, where=where, remedy=remedy)

    def modules(self, recipe: Recipe) -> Iterator[Module]:
        """Every module of the original, with `{i}` filled in."""
        yield from self.outer
        for i in range(len(recipe.blocks)):
            block = self.block.replace(LAYER, str(i))
            for part in self.inner:
                paths = tuple(f"blocks.{i}.{path}" for path in part.paths)
                yield Module(f"{block}.{part.name}", paths, part.transposed)

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Shape, dict[str, Source]]]:
        """Every tensor that the recipe needs: canonical name, shape, and the slots that it fills."""
        shapes = slots(recipe)
        for part in self.modules(recipe):
            for kind in ("weight", "bias"):
                parts = {slot: shapes[slot] for path in part.paths if (slot := slot_name(path, kind)) in shapes}
                if parts:
                    yield _tensor(f"{part.name}.{kind}", parts, part.transposed)

    def site(self, path: str, recipe: Recipe) -> Site | None:
        """Where the oracle shows the output of the call at `path`; `blocks.3` is the whole block.

        None for a call that is no module of its own there (rotary, attention, activation, sums).
        """
        if self.oracle.family is not None:
            return by_name(self.oracle.family).site(path, recipe)
        shapes = slots(recipe)
        layer = path.removeprefix("blocks.")
        if layer != path and layer.isdigit():
            return Site(self.block.replace(LAYER, layer))
        for part in self.modules(recipe):
            if path in part.paths:
                if len(part.paths) == 1:
                    return Site(part.name)
                before = part.paths[: part.paths.index(path)]
                start = sum(shapes[f"{other}.weight"][0] for other in before)
                return Site(part.name, (start, start + shapes[f"{path}.weight"][0]))
        return None


def _facts(kind: str, items: tuple[Key, ...] | tuple[Module, ...]) -> dict[str, Any]:
    return {f"{kind} {item.name}": item for item in items}


def slot_name(path: str, kind: str) -> str:
    """The slot of a module's `weight` or `bias`. Learned positions are a bare table, named without either."""
    return path if path == "embed.positions" and kind == "weight" else f"{path}.{kind}"


def _tensor(name: str, parts: Mapping[str, Shape], transposed: bool) -> tuple[str, Shape, dict[str, Source]]:
    first = next(iter(parts.values()))
    whole = (sum(shape[0] for shape in parts.values()), *first[1:])
    lying = whole[::-1] if transposed else whole
    sources, start = {}, 0
    for slot, shape in parts.items():
        rows = None if len(parts) == 1 else (start, start + shape[0])
        sources[slot] = Source(name, lying, transposed and len(whole) == 2, rows)
        start += shape[0]
    return name, lying, sources


@cache
def all_families() -> tuple[Family, ...]:
    """Every family in the folder `families`, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
    return tuple(importlib.import_module(f"{families.__name__}.{name}").FAMILY for name in names)


def architectures() -> tuple[str, ...]:
    """Every architecture that some family reads, as config.json names it."""
    return tuple(sorted({name for family in all_families() for name in family.architectures}))


def by_name(name: str) -> Family:
    """The family called `name`."""
    for family in all_families():
        if family.name == name:
            return family
    raise CheckpointError(f"no family {name!r}", remedy=f"families are {', '.join(f.name for f in all_families())}")


def choose(config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a config: by `architectures`, or by `model_type` where it names none."""
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise CheckpointError(f"architectures is {hfconfig.shown(named)}, not a list of names", where=where)
    kind = config.get("model_type")
    for family in all_families():
        if any(name in family.architectures for name in named or ()):
            return family
    for family in () if named else all_families():
        if kind in family.model_types:
            return family
    asked = ", ".join(named) if named else f"model_type {hfconfig.shown(kind)}"
    raise CheckpointError(
        f"architecture {hfconfig.shown(asked)} is not supported",
        where=where,
        remedy=f"supported are {', '.join(architectures())}",
    )
