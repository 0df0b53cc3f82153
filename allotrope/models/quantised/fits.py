"""Whether codes can be written in a way of storing them."""

from __future__ import annotations

from allotrope.errors import UsageError
from allotrope.models.quantised.codes import Codes
from allotrope.models.quantised.stored import PER_CHANNEL, Stored


def check_fits(codes: Codes, stored: Stored) -> None:
    """An error unless the numbers, the groups, the zero points and the order are such as `stored` says."""
    remedy = f"these are to be written as {stored.words}"
    if codes.number != stored.number:
        raise UsageError(f"the codes are {codes.number}", remedy=remedy)
    outputs, inputs = codes.codes.shape
    groups = 1 if stored.group == PER_CHANNEL else inputs / stored.group
    if codes.scales.shape != (outputs, groups):
        raise UsageError(f"the codes have {codes.scales.shape[1]} groups of {codes.group or inputs}", remedy=remedy)
    if stored.symmetric and codes.zeros is not None:
        raise UsageError("the codes have zero points, but a symmetric layout has none", remedy=remedy)
    if codes.order is not None and not stored.desc_act:
        raise UsageError("the codes' inputs are out of order, but the layout has no index", remedy=remedy)
