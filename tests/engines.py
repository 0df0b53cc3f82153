"""Small engines for tests of the runtime, made without the builder, and a model to compare them with.

`MemoryEngine` is an engine that lives in memory; `write` puts the same into a folder. `naive` computes a
recipe's logits for one sequence straightforwardly, without cache, batch, pages, plan or ops.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.problems import Load, problem
from allotrope.hw.detect import detect
from allotrope.models.lower import lower
from allotrope.models.recipe import Attention, Block, Mlp, Norm, Positions, Recipe, Rotary, slots
from allotrope.ops import registry
from allotrope.ops.packing import PACKINGS

CPU = detect("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VOCAB = 300

_ROTARY = Rotary(dim=8, base=10000.0)
LLAMA = Recipe(
    vocab=VOCAB,
    hidden=32,
    max_len=64,
    blocks=(Block(Attention(4, 2, 8, rotary=_ROTARY), Mlp(48, "silu", gated=True), Norm("rms", 1e-5)),) * 2,
    final_norm=Norm("rms", 1e-5),
)
GPT = Recipe(
    vocab=VOCAB,
    hidden=32,
    max_len=64,
    blocks=(
        Block(
            Attention(4, 4, 8, bias=True, out_bias=True),
            Mlp(64, "gelu_tanh", bias=True),
            Norm("layer", 1e-5, bias=True),
        ),
    )
    * 2,
    final_norm=Norm("layer", 1e-5, bias=True),
    positions=Positions(66, offset=2),
    tied=True,
)


def random_weights(recipe: Recipe, seed: int = 0, dtype: str = "fp32") -> dict[str, torch.Tensor]:
    """A weight per slot, large enough that the next tokens differ and change."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for slot, shape in slots(recipe).items():
        value = torch.randn(shape, generator=random)
        if len(shape) == 2:
            value = value if slot.startswith("embed") else value * 1.5 / shape[1] ** 0.5
        else:
            value = 1 + value * 0.2 if slot.endswith("norm.weight") else value * 0.2
        found[slot] = value.to(DTYPES[dtype])
    return found


def deterministic(plan: Plan) -> Plan:
    """The plan with, for every call, the first tactic that has a row class (or the first, if none has)."""

    def chosen(call: Call) -> Call:
        posed = problem(plan, call, Load(rows=8, requests=4, context=32))
        usable = [t for t in registry.tactics(call.op) if t.why_not(posed, CPU) is None]
        classed = [t for t in usable if t.row_class(posed, CPU) is not None]
        return replace(call, tactics=((None, (classed or usable)[0].name),))

    return replace(plan, calls=tuple(chosen(call) for call in plan.calls))


@dataclass(frozen=True)
class _Described:
    plan: Plan
    tuned: Mapping[str, Any] = field(default_factory=dict)


class MemoryEngine:
    """The Engine protocol over arrays in memory; counts how often it was told to forget."""

    def __init__(self, plan: Plan, weights: Mapping[str, torch.Tensor]) -> None:
        self.manifest = _Described(plan)
        self.forgotten = 0
        self._arrays = {name: packed(plan, name, weights) for name in plan.weights}

    def array(self, name: str) -> np.ndarray[Any, Any]:
        return self._arrays[name]

    def dtype(self, name: str) -> str:
        return self.manifest.plan.dtype

    def forget(self) -> None:
        self.forgotten += 1


def packed(plan: Plan, name: str, weights: Mapping[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    """A plan's weight as the engine's file has it."""
    weight = plan.weights[name]
    parts = [weights[slot] for slot, _ in weight.parts]
    raw = [part.view(torch.uint16).numpy() if part.dtype == torch.bfloat16 else part.numpy() for part in parts]
    return np.array(PACKINGS[weight.packing].pack(raw))


def write(
    folder: Path, plan: Plan, weights: Mapping[str, torch.Tensor], chat_template: str | None = None, **generation: Any
) -> Path:
    """An engine folder with the byte tokenizer."""
    from allotrope import __version__
    from allotrope.artifact.manifest import SCHEMA, Manifest
    from allotrope.artifact.writer import writing
    from allotrope.hw.fingerprint import fingerprint

    here = fingerprint(CPU)
    described = Manifest(
        schema=SCHEMA,
        version=__version__,
        family="test",
        plan=plan,
        config={},
        generation={"bos_token_id": 1, "eos_token_ids": [2], "pad_token_id": 0} | generation,
        source={"path": "nowhere", "digest": "", "random": True},
        dtype=plan.dtype,
        device={"kind": CPU.kind, "name": CPU.name, "arch": CPU.arch},
        fingerprint={"hard": here.hard, "soft": here.soft},
        tactics={
            f"{call.op}/{name}": registry.tactic(call.op, name).version
            for call in plan.calls
            for _, name in call.tactics
        },
        limits={"max_batch": 64, "max_len": plan.max_len},
        options={},
        tuned={},
        evidence={},
        files={},
    )
    with writing(folder) as writer:
        writer.weights(plan, lambda name: [packed(plan, name, weights)])
        files = {"bytes.json": {"vocab_size": plan.vocab}}
        if chat_template is not None:
            files["tokenizer_config.json"] = {"chat_template": chat_template}
        writer.tokenizer((name, json.dumps(content).encode()) for name, content in files.items())
        writer.finish(described)
    return folder


def naive(recipe: Recipe, weights: Mapping[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab] logits in fp64 of one whole sequence."""
    w = {slot: value.double() for slot, value in weights.items()}
    x = w["embed.weight"][tokens]
    if recipe.positions is not None:
        x = x + w["embed.positions"][torch.arange(len(tokens)) + recipe.positions.offset]
    for i, block in enumerate(recipe.blocks):
        x = x + _attend(w, f"blocks.{i}.attn", block.attention, _norm(w, f"blocks.{i}.attn.norm", block.norm, x))
        x = x + _mlp(w, f"blocks.{i}.mlp", block.mlp, _norm(w, f"blocks.{i}.mlp.norm", block.norm, x))
    assert recipe.final_norm is not None
    x = _norm(w, "head.norm", recipe.final_norm, x)
    return x @ w["embed.weight" if recipe.tied else "head.weight"].T


def _linear(w: Mapping[str, torch.Tensor], path: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{path}.weight"].T + w.get(f"{path}.bias", torch.zeros(()))


def _norm(w: Mapping[str, torch.Tensor], path: str, spec: Norm, x: torch.Tensor) -> torch.Tensor:
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + spec.eps).sqrt()
    return x * w[f"{path}.weight"] + w.get(f"{path}.bias", torch.zeros(()))


def _attend(w: Mapping[str, torch.Tensor], path: str, spec: Attention, x: torch.Tensor) -> torch.Tensor:
    count = len(x)
    q, k, v = (_linear(w, f"{path}.{part}", x).view(count, -1, spec.head_dim) for part in "qkv")
    if spec.rotary is not None:
        half = spec.head_dim // 2
        angles = torch.arange(count)[:, None] * spec.rotary.base ** (-torch.arange(half).double() / half)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]

        def turned(t: torch.Tensor) -> torch.Tensor:
            z = torch.complex(t[..., :half].contiguous(), t[..., half:].contiguous()) * turn
            return torch.cat((z.real, z.imag), -1)

        q, k = turned(q), turned(k)
    k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * spec.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return _linear(w, f"{path}.o", out.reshape(count, -1))


def _mlp(w: Mapping[str, torch.Tensor], path: str, spec: Mlp, x: torch.Tensor) -> torch.Tensor:
    act = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
    }[spec.activation]
    up = _linear(w, f"{path}.up", x)
    return _linear(w, f"{path}.down", act(_linear(w, f"{path}.gate", x)) * up if spec.gated else act(up))


def plan_of(recipe: Recipe, dtype: str = "fp32") -> Plan:
    """The recipe lowered, with deterministic tactics."""
    return deterministic(lower(recipe, dtype))
