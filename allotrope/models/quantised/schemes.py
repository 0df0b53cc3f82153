"""compressed-tensors' part of `quantization_config`: groups of modules, each with its scheme."""

from __future__ import annotations

from typing import Any

from allotrope.errors import CheckpointError
from allotrope.models.hfconfig import Key, count, fixed, names, tree
from allotrope.models.quantised.patterns import REGEX
from allotrope.models.quantised.patterns import problem as entry_problem
from allotrope.models.quantised.stored import PER_CHANNEL, REMEDY, Section, Stored

FORMATS = {
    "pack-quantized": ("int",),
    "int-quantized": ("int",),
    "naive-quantized": ("int", "float"),
    "float-quantized": ("float",),
}
"""Supported formats and the types of number that each may hold."""

_TOLD = names("quant_method global_compression_ratio version run_compressed")
_KEYS = (
    Key("config_groups", dict),
    Key("format", str, among=tuple(FORMATS), why=REMEDY),
    tree("ignore", list),
    fixed("kv_cache_scheme", None, REMEDY),
    # older tools stop at "frozen" and store the same: that the weights are codes, their headers must say
    Key("quantization_status", str, "compressed", among=("compressed", "frozen"), why=REMEDY),
    tree("sparsity_config"),
    tree("transform_config"),
)
_GROUP_KEYS = (
    Key("targets", list),
    Key("weights", dict),
    tree("input_activations"),
    fixed("output_activations", None, REMEDY),
    Key("format", str, None, null=True),
)
_ARGUMENTS = (
    Key("num_bits", int, 8),
    Key("type", str, "int", among=("int", "float"), why=REMEDY),
    Key("symmetric", bool, True),
    Key("strategy", str, None, null=True),
    count("group_size", None, low=PER_CHANNEL, high=65536),
    Key("dynamic", bool, False, among=(True, False), why=REMEDY),
    Key("actorder", object, None, null=True),
    fixed("block_structure", None, REMEDY),
)
_OBSERVED = names("observer observer_kwargs scale_dtype zp_dtype")  # the stored scales' own dtype is what counts
_ORDERS = {None: False, False: False, "weight": False, "static": False, True: True, "group": True, "dynamic": True}


def read(section: Section) -> Stored:
    """The one scheme that all groups must share."""
    said = section.read(_KEYS, _TOLD)
    for name in ("sparsity_config", "transform_config"):
        if said[name] and said[name].get("format") != "dense":
            raise section.refuse(name, said[name], "weights must be stored dense and untransformed")
    ignore = entries(section, "ignore", said["ignore"])
    found = [_group(section, name, group, said["format"]) for name, group in said["config_groups"].items()]
    if not found:
        raise section.refuse("config_groups", said["config_groups"], "it must have a group")
    targets, first = found[0]
    for more, other in found[1:]:
        if other != first:
            problem = f"{section.path}.config_groups mixes {first.words} and {other.words}, which is not supported"
            raise CheckpointError(f"{problem}: all must be stored alike", where=section.where, remedy=REMEDY)
        targets += more
    # a class stands for every module of its kind, which the tensors themselves show
    only = () if "Linear" in targets else targets
    return Stored(**{**vars(first), "ignore": ignore, "targets": only})


def entries(section: Section, name: str, listed: list[Any] | None) -> tuple[str, ...]:
    """A list of names and expressions."""
    for entry in listed or ():
        why = entry_problem(entry) if isinstance(entry, str) and entry else "each entry must be a name"
        if why:
            raise section.refuse(name, entry, why)
    return tuple(listed or ())


def _group(section: Section, name: str, group: Any, form: str) -> tuple[tuple[str, ...], Stored]:
    path = f"{section.path}.config_groups.{name}"
    if not isinstance(group, dict):
        raise section.refuse(f"config_groups.{name}", group, "it must be an object with targets and weights")
    inner = Section(group, path, section.where)
    said = inner.read(_GROUP_KEYS, ())
    targets = entries(inner, "targets", said["targets"])
    for target in targets:
        if target != "Linear" and not target.startswith(REGEX) and target[:1].isupper():
            raise inner.refuse("targets", target, "of the classes only 'Linear' can be quantised")
    if said["format"] not in (None, form):
        raise inner.refuse("format", said["format"], f"it must be {form!r} as for all")
    weights = Section(said["weights"], f"{path}.weights", section.where)
    stored = _weights(weights, form)
    acts = said["input_activations"]
    if acts is not None:
        coming = Section(acts, f"{path}.input_activations", section.where)
        stored = Stored(**{**vars(stored), "activations": _activations(coming, stored)})
    return targets, stored


def _weights(section: Section, form: str) -> Stored:
    said = section.read(_ARGUMENTS, _OBSERVED)
    if said["type"] not in FORMATS[form]:
        raise section.refuse("type", said["type"], f"{form} holds {' or '.join(FORMATS[form])}")
    floating, bits = said["type"] == "float", said["num_bits"]
    if bits not in ((8,) if floating else (4, 8)):
        raise section.refuse("num_bits", bits, "it must be 8" if floating else "it must be 4 or 8")
    if said["dynamic"]:
        raise section.refuse("dynamic", True, "weights must be stored with their scales")
    if floating and not said["symmetric"]:
        raise section.refuse("symmetric", False, "it must be True for float weights")
    order = said["actorder"]
    if not isinstance(order, (bool, str, type(None))) or order not in _ORDERS:
        raise section.refuse("actorder", order, "it must be 'group', 'weight' or null")
    strategy, group = _strategy(section, said["strategy"], said["group_size"])
    if _ORDERS[order] and strategy != "group":
        raise section.refuse("actorder", order, "only groups can be ordered")
    return Stored(
        "compressed-tensors",
        bits=bits,
        group=group if strategy == "group" else PER_CHANNEL,
        symmetric=said["symmetric"],
        desc_act=_ORDERS[order],
        form=form,
        floating=floating,
        per_tensor=strategy == "tensor",
    )


def _strategy(section: Section, strategy: str | None, group: int | None) -> tuple[str, int]:
    """The strategy stated, or the one that the group's size implies; the two must agree."""
    implied = "tensor" if group is None else "channel" if group == PER_CHANNEL else "group"
    strategy = strategy or implied
    if strategy not in ("tensor", "channel", "group"):
        raise section.refuse("strategy", strategy, "it must be 'tensor', 'channel' or 'group'")
    if group == 0 or (strategy == "group") != (implied == "group"):
        raise section.refuse("group_size", group, f"strategy {strategy!r} cannot have it")
    return strategy, group or PER_CHANNEL


def _activations(section: Section, weights: Stored) -> str:
    """Activations may be rounded to 8 bits per token while the model runs: nothing of that is stored."""
    said = section.read(_ARGUMENTS, _OBSERVED)
    if said["dynamic"] is not True:
        raise section.refuse("dynamic", said["dynamic"], "it must be True: static activation scales are not read")
    for name, wanted in (("strategy", "token"), ("num_bits", 8), ("symmetric", True)):
        if said[name] != wanted:
            raise section.refuse(name, said[name], f"it must be {wanted!r}")
    if (said["type"] == "float") != weights.floating:
        raise section.refuse("type", said["type"], "it must be that of the weights")
    return "fp8" if weights.floating else "int8"
