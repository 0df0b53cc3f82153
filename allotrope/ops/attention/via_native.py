"""Attention in the native core: a row's bits are its own, in whatever chunk it comes and on however many threads."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.ops.attention.shape import misshapen
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.kv_rows import FORMS
from allotrope.ops.native import NativeTactic

_KEYS, _TILE, _LANES = 128, 32, 16  # as in via_native.cpp; of lanes the most that any instruction set has


def _numbers(params: Mapping[str, Scalar]) -> tuple[float, ...]:
    plain = (float(params[name]) for name in ("heads", "kv_heads", "head_dim", "scale", "window"))
    return *plain, FORMS.index(str(params["kv"]))


def _scratch(problem: Problem, threads: int) -> int:
    """For each thread a tile of queries; where threads share a tile's splits, their results as well."""
    padded = -(-int(problem.params["head_dim"]) // _LANES) * _LANES
    part = _LANES + padded
    own = threads * _TILE * (padded + _KEYS + 2 * part)
    splits = problem.axes["context"] // _KEYS + 2
    shared = (2 * threads - 1) * splits * _TILE * part if threads > 1 else 0
    return 4 * (own + shared)


TACTICS = (NativeTactic("attention", "native", "attention", _numbers, refuses=misshapen, scratch=_scratch),)
