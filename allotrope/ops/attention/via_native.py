"""Attention in the native core: a row's bits are its own, in whatever chunk it comes and on however many threads."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.attention.shape import misshapen
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.kv_rows import FORMS
from allotrope.ops.native import NativeTactic


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    plain = (float(params[name]) for name in ("heads", "kv_heads", "head_dim", "scale", "window"))
    return *plain, FORMS.index(str(params["kv"]))


def _sizes(problem: Problem) -> tuple[int, ...]:
    return int(problem.params["head_dim"]), problem.axes["context"]


TACTICS = (NativeTactic("attention", "native", "attention", _numbers, refuses=misshapen, sizes=_sizes),)
