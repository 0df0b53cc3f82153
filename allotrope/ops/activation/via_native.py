"""Activations in the native core. An element's bits depend on nothing else, so rows need no care."""

from __future__ import annotations

from allotrope.ops.activation.native import number, unknown
from allotrope.ops.native import NativeTactic

TACTICS = (NativeTactic("activation", "native", "activation", number, refuses=unknown),)
