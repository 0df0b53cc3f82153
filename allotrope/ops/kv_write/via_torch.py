"""The write with torch: one indexed copy per cache, or one for both where keys and values lie side by side."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.pairs import paired, widest


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    rows, caches = paired(ins["k"], ins["v"]), paired(out["k_cache"], out["v_cache"])
    if rows is not None and caches is not None:
        _copy(caches.flatten(1, 2), 1, ins["slots"], rows)
        return
    for name, single in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        _copy(out[name].view(-1, single.shape[1]), 0, ins["slots"], single)


def _copy(cache: Tensor, axis: int, slots: Tensor, rows: Tensor) -> None:
    wide, given = widest(cache), widest(rows)
    if wide.dtype == given.dtype:
        wide.index_copy_(axis, slots, given)
    else:
        cache.index_copy_(axis, slots, rows)


TACTICS = (FunctionTactic("kv_write", "torch", _run),)
