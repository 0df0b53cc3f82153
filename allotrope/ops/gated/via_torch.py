"""The gated activation with torch: the activation into the output, then one IEEE product per element."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allotrope.hw.device import Device
from allotrope.ops.activation import pieces
from allotrope.ops.contract import Problem, Scalar
from allotrope.ops.functional import FunctionTactic


def _unknown(problem: Problem, device: Device) -> str | None:
    return pieces.unknown(problem)


def _whole(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    pieces.whole(str(params["kind"]), ins["gate"], out["out"])
    out["out"].mul_(ins["up"])


def _in_pieces(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    pieces.in_pieces(str(params["kind"]), ins["gate"], out["out"], workspace)
    out["out"].mul_(ins["up"])


TACTICS = (
    FunctionTactic("gated", "torch", _whole, refuses=_unknown, rowwise=pieces.whole_mixes),
    FunctionTactic("gated", "torch_pieces", _in_pieces, refuses=pieces.pieces_refuse, scratch=pieces.staging_bytes),
)
