"""What every tactic of coded weights asks of a problem."""

from __future__ import annotations

from dataclasses import replace

from allotrope.ops.contract import Problem
from allotrope.ops.linear_codes import ACTIVATIONS, FORMATS, PER_BYTE

_MEET = {"int8": ("int8", "int4"), "fp8": ("fp8",)}  # activations → weights whose codes they may meet
LINE = 64  # bytes: what a workspace's parts are aligned to


def activations(problem: Problem) -> str:
    """The format of x in the product: "none", "int8" or "fp8"."""
    return str(problem.params.get("activations", "none"))


def unfit(problem: Problem) -> str | None:
    """A format that is unknown, sizes that do not fit, activations that do not meet such weights; None if all is well.

    int4 weights and groups may meet int8 activations (W4A8); `grouped.py` says how their products are summed.
    """
    form, rows, axes = str(problem.params["format"]), activations(problem), problem.axes
    if form not in FORMATS:
        return f"format {form!r} is unknown; there are {', '.join(FORMATS)}"
    if rows not in ACTIVATIONS:
        return f"activations {rows!r} are unknown; there are {', '.join(ACTIVATIONS)}"
    if axes["packed"] * PER_BYTE[form] != axes["in"] or axes["in"] % axes["groups"]:
        return f"{axes['packed']} bytes and {axes['groups']} groups a row do not fit {axes['in']} codes of {form}"
    if "zeros" in problem.present and form != "int4":
        return f"{form} has no zeros, for it is symmetric"
    if rows != "none" and form not in _MEET[rows]:
        return f"{rows} activations do not meet {form} weights; they meet {' and '.join(_MEET[rows])}"
    return None


def plain(problem: Problem, out: int) -> Problem:
    """The linear layer's problem with `out` rows of the decoded weight."""
    axes = {"rows": problem.axes["rows"], "in": problem.axes["in"], "out": out}
    return replace(problem, op="linear", axes=axes, params={}, present=problem.present & {"bias"})


def aligned(size: int) -> int:
    """`size` up to where the workspace's next part may begin."""
    return -(-size // LINE) * LINE
