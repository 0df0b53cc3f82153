"""Rows chosen and widened with torch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic
from allotrope.ops.linear_stored import STORES


def _refuses(problem: Problem, device: Device) -> str | None:
    store = problem.params["store"]
    return None if store in STORES else f"a store in {store!r} is unknown; there are {', '.join(STORES)}"


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    out["out"].copy_(ins["table"][ins["ids"]])


TACTICS = (FunctionTactic("embed_stored", "torch", _run, {"table": "rows"}, _refuses),)
