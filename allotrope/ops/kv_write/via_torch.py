"""The write with torch: one indexed copy per cache, or one for both where keys and values lie side by side."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.kv_codes import coded
from allotrope.ops.kv_rows import COMPUTE, misfit
from allotrope.ops.pairs import paired, widest


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    form, heads = str(params.get("kv", COMPUTE)), int(params.get("kv_heads", 1))

    def laid(rows: Tensor) -> Tensor:
        return rows if form == COMPUTE else coded(rows, heads, form)

    rows, caches = paired(ins["k"], ins["v"]), paired(out["k_cache"], out["v_cache"])
    if rows is not None and caches is not None:
        _copy(caches.flatten(1, 2), 1, ins["slots"], laid(rows))
        return
    for name, single in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        _copy(out[name].flatten(0, 1), 0, ins["slots"], laid(single))


def _copy(cache: Tensor, axis: int, slots: Tensor, rows: Tensor) -> None:
    wide, given = widest(cache), widest(rows)
    if wide.dtype == given.dtype:
        wide.index_copy_(axis, slots, given)
    else:
        cache.index_copy_(axis, slots, rows)


def _refuses(problem: Problem, device: Device) -> str | None:
    form, heads = str(problem.params.get("kv", COMPUTE)), int(problem.params.get("kv_heads", 1))
    width = problem.axes["kv_width"]
    if width % heads:
        return f"{width} channels cannot be {heads} heads"
    return misfit(form, heads, width // heads, problem.axes["cache_width"])


TACTICS = (FunctionTactic("kv_write", "torch", _run, refuses=_refuses),)
