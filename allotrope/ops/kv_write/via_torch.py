"""The write with torch: one indexed copy per cache, or one for both where keys and values lie side by side."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.pairs import paired


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    rows, caches = paired(ins["k"], ins["v"]), paired(out["k_cache"], out["v_cache"])
    if rows is not None and caches is not None:
        caches.flatten(1, 2).index_copy_(1, ins["slots"], rows)
        return
    for name, single in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        out[name].view(-1, single.shape[1]).index_copy_(0, ins["slots"], single)


TACTICS = (FunctionTactic("kv_write", "torch", _run),)
