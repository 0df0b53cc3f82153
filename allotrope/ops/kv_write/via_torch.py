"""The write with torch: one indexed copy per cache."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    for name, rows in (("k_cache", ins["k"]), ("v_cache", ins["v"])):
        out[name].view(-1, rows.shape[1]).index_copy_(0, ins["slots"], rows)


TACTICS = (FunctionTactic("kv_write", "torch", _run),)
