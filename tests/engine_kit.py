"""A tiny engine made without torch and without the builder, for tests of the folder itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from allotrope.artifact import digests, layout, manifest
from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import Plan
from allotrope.artifact.writer import writing
from allotrope.hw.detect import detect
from allotrope.hw.fingerprint import fingerprint
from allotrope.models.lower import lower
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Recipe
from allotrope.ops.tactic import REFERENCE

NORM = Norm("layer", 1e-5, bias=True)
RECIPE = Recipe(
    vocab=99,  # odd sizes: nothing is a multiple of 64 by luck
    hidden=24,
    max_len=64,
    blocks=(Block(Attention(4, 2, 6, bias=True, out_bias=True), Mlp(52, "gelu", bias=True), NORM),) * 2,
    final_norm=NORM,
)

WIDER = Recipe(64, 32, 64, (Block(Attention(4, 2, 8, bias=True), Mlp(64, "gelu"), NORM),) * 2, NORM)
"""Widths that groups of 32 divide."""


def packed(plan: Plan, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random packed weights; raw bits, so that every dtype's carrier is exercised."""
    random = np.random.default_rng(seed)
    found = {}
    for name, weight in plan.weights.items():
        carrier = np.dtype(layout.STORED[layout.stored_dtype(plan, weight)][1])
        if carrier == np.uint8:
            found[name] = random.integers(0, 120, layout.packed_shape(weight), np.uint8)
            continue
        values = random.standard_normal(layout.packed_shape(weight)).astype(np.float32)
        found[name] = values.astype(carrier) if carrier != np.uint16 else (values.view(np.uint32) >> 16).astype(carrier)
    return found


def describe(plan: Plan, version: str = "0") -> Manifest:
    device = detect("cpu")
    facts = fingerprint(device)
    return Manifest(
        schema=manifest.SCHEMA,
        version=version,
        family="kit",
        plan=plan,
        config={"model_type": "kit"},
        generation={"bos_token_id": 1, "eos_token_ids": [2]},
        source={"path": "random:kit", "digest": "0", "random": True},
        dtype=plan.dtype,
        device=asdict(device),
        fingerprint={"hard": facts.hard, "soft": facts.soft},
        tactics={f"{op}/{REFERENCE}": 1 for op in sorted({call.op for call in plan.calls})},
        limits={"max_batch": 4, "max_len": plan.max_len},
        options={},
        tuned={},
        evidence={},
        files={},
    )


def write(target: Path, *, dtype: str = "fp32", seed: int = 0, version: str = "0") -> dict[str, np.ndarray[Any, Any]]:
    """Write an engine and return the weights that went in."""
    return write_plan(target, lower(RECIPE, dtype), seed=seed, version=version)


def write_plan(target: Path, plan: Plan, *, seed: int = 0, version: str = "0") -> dict[str, np.ndarray[Any, Any]]:
    """The same for any plan."""
    weights = packed(plan, seed)

    def pieces(name: str) -> Iterator[np.ndarray[Any, Any]]:
        yield from np.array_split(weights[name], 3)

    with writing(target) as writer:
        writer.weights(plan, pieces)
        writer.tokenizer([("bytes.json", b'{"vocab_size": %d}' % plan.vocab)])
        writer.finish(describe(plan, version))
    return weights


def load(engine: Path) -> dict[str, Any]:
    """engine.json as data."""
    return json.loads((engine / manifest.FILE).read_text(encoding="utf-8"))


def store(engine: Path, data: dict[str, Any]) -> None:
    """Write changed data back as a careful forger would: with a digest that fits."""
    body = json.dumps({name: value for name, value in data.items() if name != "digest"}).encode()[1:]
    (engine / manifest.FILE).write_bytes(b'{"digest": "%s",' % digests.of_bytes(body).encode() + body)
