"""Learned positions with torch: gather into the output, then one IEEE addition per element."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic


def _scratch(problem: Problem, device: Device) -> int:
    return 8 * problem.axes["rows"]  # the shifted positions


def _run(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    positions, offset = ins["positions"], int(params["offset"])
    if offset and workspace is not None:
        shifted = workspace[: 8 * len(positions)].view(torch.int64)
        positions = torch.add(positions, offset, out=shifted)
    torch.index_select(ins["table"], 0, positions, out=out["out"])
    out["out"].add_(ins["x"])


TACTICS = (FunctionTactic("add_positions", "torch", _run, {"table": "rows"}, scratch=_scratch),)
