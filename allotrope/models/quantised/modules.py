"""Which modules of a folder are quantised, and whose each tensor is: nothing is dropped and nothing is missing.

What a module is called in the family does not matter here. A tensor that belongs to no quantised module (a norm, an
embedding, a bias, a weight that was left as it was) is plain, and the family's own mapping accounts for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from allotrope.errors import CheckpointError
from allotrope.models.quantised import awq, compressed, gptq
from allotrope.models.quantised.codes import Array, Codes
from allotrope.models.quantised.parts import REMEDY, Parts
from allotrope.models.quantised.stored import Stored
from allotrope.models.readers.safetensors_header import shown

Unpack = Callable[[Parts, Stored], Codes]
Pack = Callable[[Codes, Stored], dict[str, Array]]

LAYOUTS: Mapping[str, tuple[Unpack, Pack]] = {
    "gptq": (gptq.unpack, gptq.pack),
    "awq": (awq.unpack, awq.pack),
    "compressed-tensors": (compressed.unpack, compressed.pack),
}
"""Each method's two directions."""

# What such tools call tensors that are no plain weight or bias: one that no quantised module has is an error.
_OWN = {
    "gptq": {"qweight", "qzeros", "scales", "g_idx"},
    "awq": {"qweight", "qzeros", "scales", "g_idx"},
    "compressed-tensors": {
        *("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_global_scale"),
        *("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point"),
        *("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "compressed", "bitmask", "row_offsets"),
    },
}


@dataclass(frozen=True)
class Rule:
    """The tensors of one module: `first` shows that it is quantised, `must` be there with it, `may` be."""

    first: str
    must: tuple[str, ...]
    may: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A folder's tensors: the quantised modules with theirs, by the last part of the name, and all the others."""

    modules: Mapping[str, Mapping[str, str]]
    plain: tuple[str, ...]


def rule(stored: Stored) -> Rule:
    """What each quantised module has."""
    if stored.method == "awq":
        return Rule("qweight", ("qzeros", "scales"), ())
    if stored.method == "gptq":
        return _ordered(stored, "g_idx", "qweight", ("qzeros", "scales"), may=("g_idx",))
    zero = "weight_zero_point"
    must, may = ((), (zero,)) if stored.symmetric else ((zero,), ())
    if stored.form == compressed.PACKED:
        return _ordered(stored, "weight_g_idx", "weight_packed", ("weight_scale", "weight_shape", *must), may)
    return _ordered(stored, "weight_g_idx", "weight_scale", ("weight", *must), may)


def split(tensors: Iterable[str], stored: Stored, where: str = "") -> Split:
    """Whose each tensor is. A module with a part missing or one too many is an error that names the tensor."""
    known, wanted = set(tensors), rule(stored)
    parts = (wanted.first, *wanted.must, *wanted.may)
    modules = {}
    for name in sorted(known):
        module, _, part = name.rpartition(".")
        if part == wanted.first and module:
            modules[module] = {part: f"{module}.{part}" for part in parts if f"{module}.{part}" in known}
    for module, found in modules.items():
        _check_module(module, found, known, stored, where)
    if not modules:
        problem = f"the config says {stored.words}, but no tensor is called *.{wanted.first}"
        raise CheckpointError(problem, where=where or None, remedy=REMEDY)
    taken = {name for found in modules.values() for name in found.values()}
    plain = tuple(sorted(known - taken))
    for name in plain:
        if name.rpartition(".")[2] in _OWN[stored.method]:
            problem = f"tensor {shown(name)} belongs to no module stored as {stored.words}"
            raise CheckpointError(problem, where=where or None, remedy=REMEDY)
    return Split(modules, plain)


def read(found: Split, module: str, tensor: Callable[[str], Array], stored: Stored, where: str = "") -> Codes:
    """One module's codes; `tensor` reads an array by its name."""
    unpack, _ = LAYOUTS[stored.method]
    arrays = {part: tensor(name) for part, name in found.modules[module].items()}
    return unpack(Parts(module, arrays, where), stored)


def _ordered(stored: Stored, index: str, first: str, must: tuple[str, ...], may: tuple[str, ...]) -> Rule:
    """An index of groups must be there where inputs are ordered."""
    if stored.desc_act:
        must, may = (*must, index), tuple(part for part in may if part != index)
    return Rule(first, must, may)


def _check_module(module: str, found: Mapping[str, str], known: set[str], stored: Stored, where: str) -> None:
    wanted = rule(stored)
    problem = ""
    if missing := [part for part in wanted.must if part not in found]:
        problem = f"{shown(module)} has {wanted.first}, but {shown(f'{module}.{missing[0]}')} is missing"
    elif "weight" not in found and f"{module}.weight" in known:
        problem = f"{shown(module)} has both {wanted.first} and weight"
    elif entry := stored.ignores(module):
        problem = f"{shown(module)} has {wanted.first}, but the config's {shown(entry)} says that it is not quantised"
    elif not stored.targeted(module):
        problem = f"{shown(module)} has {wanted.first}, but the config's targets do not name it"
    if problem:
        raise CheckpointError(problem, where=where or None, remedy=REMEDY)
