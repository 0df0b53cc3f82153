"""Quantised engines for tests of verification: built once each, by the builder or with scales folded by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.quant.narrow import wide_weight
from allotrope.quant.narrowed import Gathered
from allotrope.quant.rounding import round_to_nearest
from allotrope.verify.session import Question, Result, verify
from tests.narrow_kit import QUICK, checkpoint
from tests.verifying import VOCAB, Forge

NUMERIC = ("layers", "logits", "tokens")
ALL = ("preflight", *NUMERIC)
CHEAP: dict[str, Any] = {"keep": ["blocks.2.*=int8"]}  # near the original


class Narrow:
    """Builds each engine once."""

    def __init__(self, forge: Forge) -> None:
        self.forge = forge
        self._built: dict[str, Path] = {}

    def __call__(self, kind: str = "llama", dtype: str = "fp32", **options: Any) -> Path:
        key = json.dumps([kind, dtype, options])
        if key not in self._built:
            source, out = self.forge.new(f"{kind}-wide"), self.forge.new(f"{kind}-narrow")
            checkpoint(kind, source)
            (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
            build(str(source), out, **{**QUICK, "dtype": dtype}, **options)
            self._built[key] = out
        return self._built[key]


def asked(path: Path, levels: tuple[str, ...] = ALL, **more: Any) -> Result:
    return verify(path, Question(levels=levels, new_tokens=6, **more))


def moved(array: Any) -> Any:
    return np.roll(array, 1, axis=0)


def folding(change: Callable[[dict[str, torch.Tensor]], None] = lambda _: None) -> Callable[..., Any]:
    """`quant.narrow` as a calibrated build would have it: scales before and behind everything that takes them."""

    def narrowed(model: Any, plan: Plan, policy: Any, folder: Path, *, device: str, advance: Any) -> Any:
        gathered, random = Gathered(folder), torch.Generator().manual_seed(1)
        folds: dict[str, torch.Tensor] = {}

        def scales(width: int) -> torch.Tensor:
            return (0.5 + 1.5 * torch.rand(width, generator=random)).bfloat16().float()

        for i, block in enumerate(model.recipe.blocks):
            spec = block.attention
            folds |= {f"blocks.{i}.{part}.norm": scales(model.recipe.hidden) for part in ("attn", "mlp")}
            folds[f"blocks.{i}.attn.v"] = scales(spec.kv_heads * spec.head_dim)
            folds[f"blocks.{i}.mlp.up"] = scales(block.mlp.width)
        change(folds)
        for path, s in folds.items():
            slots = [slot for slot in (f"{path}.weight", f"{path}.bias") if slot in model.sources]
            for slot in slots if path.endswith("norm") else slots[1:]:
                gathered.fold(slot, wide_weight(model, slot, "cpu") / s)
        for path, form in policy.narrow.items():
            weight = wide_weight(model, f"{path}.weight", "cpu")
            block, part = path[: path.index(".", 7)], path[path.index(".", 7) + 1 :]
            if part == "attn.o":
                spec = model.recipe.blocks[0].attention
                s = folds[f"{block}.attn.v"].view(spec.kv_heads, 1, -1)
                weight = weight * s.expand(-1, spec.heads // spec.kv_heads, -1).reshape(-1)
            else:
                weight = (
                    weight * folds[f"{block}.mlp.up" if part == "mlp.down" else f"{block}.{part[:4].strip('.')}.norm"]
                )
            if path in folds:
                weight = weight / folds[path][:, None]
            gathered.add(path, weight, round_to_nearest(weight, form, path))
            advance()
        return gathered.finish(plan, policy, {})

    return narrowed
