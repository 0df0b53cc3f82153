"""Activations with torch: over all rows at once, and in pieces whose bits are each row's own."""

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
    pieces.whole(str(params["kind"]), ins["x"], out["out"])


def _in_pieces(
    out: Mapping[str, Tensor], ins: Mapping[str, Tensor], params: Mapping[str, Scalar], workspace: Tensor | None
) -> None:
    pieces.in_pieces(str(params["kind"]), ins["x"], out["out"], workspace)


TACTICS = (
    FunctionTactic("activation", "torch", _whole, refuses=_unknown, rowwise=pieces.whole_mixes),
    FunctionTactic(
        "activation", "torch_pieces", _in_pieces, refuses=pieces.pieces_refuse, scratch=pieces.staging_bytes
    ),
)
