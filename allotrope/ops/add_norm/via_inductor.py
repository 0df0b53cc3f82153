"""The sum and the norm by one kernel that torch's compiler made at build."""

from __future__ import annotations

from allotrope.ops.compiled import CompiledNorm

TACTICS = (CompiledNorm("add_norm"),)
