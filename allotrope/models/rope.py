"""The rotary settings of a config, in the forms that transformers 4 and 5 write.

4.x: `rope_theta` and `rope_scaling` (its kind under `rope_type`, before 4.43 under `type`). 5.x: both in one
object, `rope_parameters`. What they mean is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allotrope.errors import CheckpointError
from allotrope.models.hfconfig import Key, Values, check, count, fixed, number, shown, tree
from allotrope.models.recipe import Rotary
from allotrope.ops.contract import Scalar

KEYS = (
    number("rope_theta", None, low=1e-3, high=1e18),
    tree("rope_scaling"),
    tree("rope_parameters"),
    fixed("partial_rotary_factor", 1.0, "these models rotate whole heads"),
)

_THETA = 10000.0  # transformers' own, where a config states none
_FACTOR = number("factor", low=1.0, high=1024.0)
_WHOLE = fixed("partial_rotary_factor", 1.0, "these models rotate whole heads")
# kind → the numbers that it needs
_KINDS: Mapping[str, tuple[Key, ...]] = {
    "default": (),
    "linear": (_FACTOR,),
    "dynamic": (_FACTOR,),
    "llama3": (
        _FACTOR,
        number("low_freq_factor", high=1e6, low=1e-6),
        number("high_freq_factor", high=1e6, low=1e-6),
        count("original_max_position_embeddings", high=2**31),
    ),
}


@dataclass(frozen=True)
class Rope:
    """How positions rotate, and how far they reach."""

    rotary: Rotary
    max_len: int


def read_rope(values: Values, head_dim: int) -> Rope:
    """The rotary settings of heads `head_dim` wide."""
    if head_dim % 2:
        raise values.bad(f"heads are {head_dim} wide, an odd number, which cannot be rotated in halves")
    limit = values["max_position_embeddings"]
    given = _one_object(values)
    kind, numbers = _numbers(given, values.where)
    theta = given.get("rope_theta", values["rope_theta"])
    base = _THETA if theta is None else check(theta, KEYS[0], "rope_theta", values.where)
    if kind == "dynamic":
        if head_dim < 4:
            raise values.bad(f"dynamic scaling is not defined for heads {head_dim} wide")
        found: dict[str, Scalar] = {"factor": numbers["factor"], "original_len": limit}
        return Rope(Rotary(head_dim, base, kind, found), int(limit * numbers["factor"]))
    if kind == "llama3":
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        if low >= high:
            raise values.bad(f"low_freq_factor {low} is not below high_freq_factor {high}")
        original = numbers["original_max_position_embeddings"]
        found = {"factor": numbers["factor"], "low_freq": low, "high_freq": high, "original_len": original}
        return Rope(Rotary(head_dim, base, kind, found), limit)
    return Rope(Rotary(head_dim, base, "linear", numbers) if kind == "linear" else Rotary(head_dim, base), limit)


def _one_object(values: Values) -> dict[str, Any]:
    old, new, theta = values["rope_scaling"], values["rope_parameters"], values["rope_theta"]
    if old and new and _plain(old) != _plain(new):
        raise values.bad(f"rope_scaling {shown(old)} and rope_parameters {shown(new)} contradict each other")
    given = dict(new or old or {})
    if theta is not None and given.get("rope_theta", theta) != theta:
        raise values.bad(f"rope_theta {theta} and rope_parameters' rope_theta {given['rope_theta']} contradict")
    return given


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without what both forms may state or leave out."""
    kind = given.get("rope_type", given.get("type", "default"))
    return {k: v for k, v in given.items() if k not in ("type", "rope_type", "rope_theta")} | {"rope_type": kind}


def _numbers(given: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("type", kind) != kind:
        problem = f"rope_type {shown(kind)} and type {shown(given['type'])} contradict each other"
        raise CheckpointError(problem, where=where, remedy="keep the one that is right")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(
            f"rope scaling {shown(kind)} is not supported", where=where, remedy=f"supported are {', '.join(_KINDS)}"
        )
    rules = {key.name: key for key in (*_KINDS[kind], _WHOLE)}
    for name in given:
        if name not in rules and name not in ("type", "rope_type", "rope_theta"):
            problem = f"rope scaling {kind} has an unknown key {name} ({shown(given[name])})"
            raise CheckpointError(problem, where=where, remedy="remove it if it changes nothing")
    for name in (key.name for key in _KINDS[kind]):
        if name not in given:
            raise CheckpointError(f"rope scaling {kind} lacks {name}", where=where, remedy="add it to config.json")
    checked = {name: check(given[name], key, name, where) for name, key in rules.items() if name in given}
    return kind, {name: value for name, value in checked.items() if name != _WHOLE.name}
