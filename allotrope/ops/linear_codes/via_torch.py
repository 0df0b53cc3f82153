"""torch's ways with coded weights: decoded and multiplied by the linear layer's tactics, or codes times codes."""

from __future__ import annotations

from allotrope.ops.linear import via_torch as linear
from allotrope.ops.linear_codes.decoded import Decoded
from allotrope.ops.linear_codes.eight import EXACT, INT_MM, SCALED_MM, EightBit
from allotrope.ops.linear_codes.grouped import GROUPED
from allotrope.ops.linear_codes.pack import INT8_PACK
from allotrope.ops.tactic import Tactic

TACTICS: tuple[Tactic, ...] = (
    EightBit("torch_int8", INT_MM),
    EightBit("torch_scaled64", SCALED_MM, 64),
    EightBit("torch_scaled16", SCALED_MM, 16),
    *(Decoded(tactic) for tactic in linear.TACTICS if tactic.packings().get("weight") == "rows"),
    INT8_PACK,
    EightBit("torch_scaled", SCALED_MM),
    EightBit("torch_exact", EXACT),
    GROUPED,
)
