"""What tests of the native core share: a skip where there is none, and engines whose every call is the core's."""

from __future__ import annotations

from typing import Any

import pytest

from allotrope import native
from allotrope.models.recipe import Recipe
from allotrope.runtime.native import NativeExecutor
from tests.engines import CPU, MemoryEngine, plan_of, random_weights

needs_core = pytest.mark.skipif(native.find().core is None, reason=native.find().why)


def native_engine(recipe: Recipe, seed: int = 0) -> MemoryEngine:
    return MemoryEngine(plan_of(recipe).with_tactics(((None, "native"),)), random_weights(recipe, seed))


def native_executor(engine: Any, **options: Any) -> NativeExecutor:
    settings: dict[str, Any] = {"pages": 64, "page_size": 4, "max_tokens": 16, "max_requests": 4, "poison": True}
    return NativeExecutor(engine, device=CPU, **({"threads": 1} | settings | options))
