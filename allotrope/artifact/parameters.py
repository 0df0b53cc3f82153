"""Whether a call's parameters can be true: their types and bounds, and how they fit its operands' sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from allotrope.artifact.plan import Plan
from allotrope.ops import kv_rows, registry
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.linear_codes import FORMATS, PER_BYTE
from allotrope.ops.linear_stored import STORES
from allotrope.ops.rotary import SCALINGS

Need = Callable[[bool, str], None]
_LARGEST = 2**31 - 1
_REALS = {"eps": 0.0, "scale": 1e-30, "base": 1e-30, "factor": 1e-30, "low_freq": 1e-30, "high_freq": 1e-30}
_COUNTS = {"heads": 1, "kv_heads": 1, "head_dim": 1, "dim": 2, "length": 2, "window": 0, "original_len": 0, "offset": 0}
_WORDS = {
    "kind": ("gelu", "gelu_tanh", "relu", "silu"),
    "norm": ("layer", "rms"),
    "scaling": SCALINGS,
    "format": FORMATS,
    "store": STORES,
    "kv": kv_rows.FORMS,
}
_SCALED = ("dynamic", "qwen_ntk", "llama3")  # they divide by original_len


def check_parameters(path: str, posed: Problem, plan: Plan, need: Need) -> None:
    """`need` hears of every parameter of the problem that cannot be."""
    defaults = registry.contract(posed.op).params
    for name, value in posed.params.items():
        need(_possible(name, value, defaults[name]), f"{path}: parameter {name} is {value!r:.60}")
    numbers = {name: value for name, value in posed.params.items() if isinstance(value, int)}
    _check_sizes(path, numbers, posed.axes, need)
    if posed.op == "linear_codes":
        _check_codes(path, posed, need)
    scaling = posed.params.get("scaling")
    if scaling in _SCALED:
        need(numbers["original_len"] > 0, f"{path}: scaling {scaling} without original_len")
        need(scaling == "llama3" or numbers["dim"] > 2, f"{path}: scaling {scaling} of {numbers['dim']} channels")
    if "cache_width" in posed.axes:
        heads = numbers["kv_heads"]
        head_dim = numbers.get("head_dim", posed.axes.get("kv_width", 0) // heads)
        wrong = kv_rows.misfit(str(posed.params["kv"]), heads, head_dim, posed.axes["cache_width"])
        need(wrong is None, f"{path}: {wrong}")
    if "vocab" in posed.axes:
        need(posed.axes["vocab"] == plan.vocab, f"{path}: {posed.axes['vocab']} words, the plan has {plan.vocab}")
    if "offset" in numbers:  # the positions' table must hold every position
        reach = plan.max_len + numbers["offset"]
        need(reach <= posed.axes["size"], f"{path}: {posed.axes['size']} positions, {reach} are needed")


def _possible(name: str, value: Scalar, default: Scalar | None) -> bool:
    """A rule by the parameter's name; one without a rule must be of its default's type."""
    if name in _COUNTS:
        return type(value) is int and _COUNTS[name] <= value <= _LARGEST
    if name in _REALS:
        return type(value) in (int, float) and _REALS[name] <= float_or_nan(value) <= 1e30
    if name in _WORDS:
        return value in _WORDS[name]
    return isinstance(value, (int, float, str, bool)) and (default is None or type(value) is type(default))


def float_or_nan(value: Scalar) -> float:
    """A number as a float; NaN if it is too large to be one."""
    try:
        return float(value)
    except (OverflowError, ValueError):
        return math.nan


def _check_sizes(path: str, numbers: Mapping[str, int], axes: Mapping[str, int], need: Need) -> None:
    heads, head_dim, width = numbers.get("heads"), numbers.get("head_dim"), axes.get("width", 0)
    if heads is None:
        return
    if head_dim is None:
        share = axes.get("head_width", width // heads)
        need(heads * share == width, f"{path}: {heads} heads of {share} channels in {width}")
        return
    need(heads * head_dim == width, f"{path}: {heads} heads of {head_dim} channels in {width}")
    kv_heads = numbers.get("kv_heads", 1)
    need(heads % kv_heads == 0, f"{path}: {heads} heads over {kv_heads}")
    dim = numbers.get("dim", 2)
    need(dim % 2 == 0 and dim <= max(head_dim, 2), f"{path}: {dim} of {head_dim} channels cannot be rotated in halves")


def _check_codes(path: str, posed: Problem, need: Need) -> None:
    """Whether rows of codes and scales are as long as the inputs are wide; only int4 has zeros."""
    form, width = str(posed.params["format"]), posed.axes["in"]
    packed, groups = posed.axes["packed"], posed.axes["groups"]
    fitting = packed * PER_BYTE.get(form, 0) == width and width % groups == 0
    need(fitting, f"{path}: {packed} bytes and {groups} scales a row do not fit {width} codes of {form}")
    need(form == "int4" or "zeros" not in posed.present, f"{path}: {form} has no zeros")
