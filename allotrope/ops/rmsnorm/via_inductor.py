"""The norm by a kernel that torch's compiler made at build."""

from __future__ import annotations

from allotrope.ops.compiled import CompiledNorm

TACTICS = (CompiledNorm("rmsnorm"),)
