"""Rows of codes chosen and decoded with torch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.ops.codes import decoded
from allotrope.ops.contract import Scalar
from allotrope.ops.functional import FunctionTactic


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    ids, zeros, target = ins["ids"], ins.get("zeros"), out["out"]
    chosen = None if zeros is None else zeros[ids]
    target.copy_(decoded(ins["codes"][ids], ins["scales"][ids], chosen, str(params["format"]), target.dtype))


TACTICS = (FunctionTactic("embed_codes", "torch", _run, dict.fromkeys(("codes", "scales", "zeros"), "rows")),)
