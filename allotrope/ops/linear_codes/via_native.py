"""Linear layers over codes in the native core.

`native_FORMAT` widens codes in registers, for activations that stay wide. `native_FORMAT_int8` takes activations as
codes of eight bits: integer sums, which are exact, so with one scale per output its bits are those of `eight.py`'s
exact products, and with groups those of `grouped.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from allotrope.ops.contract import Problem
from allotrope.ops.linear.native import coded_sizes, sizes
from allotrope.ops.linear_codes.shape import activations, unfit
from allotrope.ops.native import NativeTactic

_BLOCK = 256  # inputs that are summed by themselves: whole groups, or a whole part of one
_INTS = 2**31 // (255 * 127)  # products of codes whose sum int32 holds, with codes made unsigned
_WEIGHTS = {"codes": "quads", "scales": "panels", "zeros": "panels", "bias": "rows"}


def _refuses(form: str, given: str) -> Callable[[Problem], str | None]:
    def refuses(problem: Problem) -> str | None:
        complaint = unfit(problem)
        if complaint is not None:
            return complaint
        if problem.params["format"] != form:
            return f"it reads {form}, and these weights are {problem.params['format']}"
        if activations(problem) != given:
            wide = given == "none"
            return f"its activations {'stay wide' if wide else f'are {given}'}, and these are {activations(problem)}"
        return _sizes(form, given, problem.axes["in"], problem.axes["groups"])

    return refuses


def _sizes(form: str, given: str, into: int, groups: int) -> str | None:
    size = into // groups
    if groups > 1 and form == "fp8":
        return "it takes fp8 weights with one scale per row"
    if groups > 1 and (size % 32 or (_BLOCK % size and size % _BLOCK)):
        return f"it takes groups of 32, 64, 128 or multiples of {_BLOCK}, not of {size}"
    if given == "int8" and size > _INTS:
        return f"its sums are exact up to {_INTS} inputs, and these are {size}"
    return None


def _wide(form: str) -> NativeTactic:
    return NativeTactic(
        "linear_codes",
        f"native_{form}",
        f"codes_{form}",
        weights=_WEIGHTS,
        refuses=_refuses(form, "none"),
        sizes=sizes,
    )


def _coded(form: str) -> NativeTactic:
    return NativeTactic(
        "linear_codes",
        f"native_{form}_int8",
        f"codes_{form}_int8",
        weights=_WEIGHTS,
        refuses=_refuses(form, "int8"),
        sizes=coded_sizes,
        classed="exact",
    )


TACTICS = (_wide("int8"), _wide("int4"), _wide("fp8"), _coded("int8"), _coded("int4"))
