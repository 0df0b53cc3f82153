"""Engines for tests of verification: built once per family and dtype, then given other weights or a planted bug."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allotrope.artifact.engine import Engine, open_engine
from allotrope.artifact.plan import Call, Plan
from allotrope.artifact.writer import writing
from allotrope.build import build
from allotrope.build.pieces import Packer
from allotrope.hw.detect import detect
from allotrope.models.model import open_model
from allotrope.ops import registry
from allotrope.ops.packing import PACKINGS
from allotrope.quant.narrowed import Narrowed
from tests.tiny import tiny

VOCAB = 263  # the byte tokenizer needs 259
CPU = detect("cpu")
Raw = np.ndarray[Any, Any]


def checkpoint(kind: str, folder: Path, **settings: Any) -> Path:
    """A tiny checkpoint with a tokenizer."""
    tiny(kind, folder, **{"vocab_size": VOCAB, **settings})
    (folder / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    return folder


def torch_tactics(op: str) -> list[Any]:
    """All but the native core's, which has tests of its own."""
    return [tactic for tactic in registry.tactics(op) if not tactic.name.startswith("native")]


PLAIN = "native"  # left out: plans of torch's tactics, in which no call has been fused with another


class Forge:
    """Makes engines. One build per kind and dtype; other seeds get the same plan with their own weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, str, str], Path] = {}
        self._made = 0

    def new(self, name: str) -> Path:
        """A path that nothing has used yet."""
        self._made += 1
        return self._folder / f"{name}-{self._made}"

    def built(self, kind: str, dtype: str = "fp32", without: str = "") -> Path:
        """The engine of seed 0, built by the builder."""
        key = (kind, dtype, without)
        if key not in self._built:
            source = checkpoint(kind, self.new(kind), seed=0)
            out = self.new(f"{kind}-{dtype}")
            build(str(source), out, device="cpu", dtype=dtype, tune="off", **({"without": without} if without else {}))
            self._built[key] = out
        return self._built[key]

    def reseeded(self, kind: str, dtype: str, seed: int) -> Path:
        """As `built`, with the weights of another seed."""
        engine = open_engine(self.built(kind, dtype), device=CPU)
        model = open_model(checkpoint(kind, self.new(kind), seed=seed))
        source = {**engine.manifest.source, "path": model.checkpoint.origin, "digest": model.checkpoint.digest()}
        packer = Packer(model, engine.manifest.plan, Narrowed(engine.manifest.plan))
        return self.write(engine, f"{kind}-{seed}", lambda name: list(packer(name)), source=source)

    def planted(
        self,
        path: Path,
        *,
        plan: Callable[[Plan], Plan] = lambda plan: plan,
        slots: Mapping[str, Callable[[Raw], Raw]] | None = None,
    ) -> Path:
        """A copy of an engine with its plan or some slots changed, and every digest consistent with that."""
        engine = open_engine(path, device=CPU)
        changed = plan(engine.manifest.plan)

        def pieces(name: str) -> list[Raw]:
            spec = changed.weights[name]
            shapes = [shape for _, shape in spec.parts]
            parts = PACKINGS[spec.packing].unpack(engine.array(name), shapes)
            altered = [
                (slots or {}).get(slot, lambda part: part)(part)
                for (slot, _), part in zip(spec.parts, parts, strict=True)
            ]
            return [PACKINGS[spec.packing].pack(altered)]

        used = {slot.removeprefix("w:") for call in changed.calls for slot in call.ins.values()}
        kept = {name: weight for name, weight in changed.weights.items() if name in used}
        changed = replace(changed, weights=kept)
        used_tactics = {(call.op, name) for call in changed.calls for _, name in call.tactics}
        versions = {f"{op}/{name}": registry.tactic(op, name).version for op, name in sorted(used_tactics)}
        return self.write(engine, "planted", pieces, plan=changed, tactics=versions)

    def described(self, path: Path, **changes: Any) -> Path:
        """A copy of an engine whose manifest says something else."""
        engine = open_engine(path, device=CPU)
        return self.write(engine, "described", lambda name: [engine.array(name)], **changes)

    def write(self, engine: Engine, name: str, pieces: Callable[[str], list[Raw]], **changes: Any) -> Path:
        out = self.new(name)
        described = replace(engine.manifest, **changes)
        with writing(out) as writer:
            writer.weights(described.plan, pieces)
            writer.tokenizer([(file.name, file.read_bytes()) for file in sorted(engine.tokenizer_dir.iterdir())])
            writer.finish(described)
        return out


class Spoilt:
    """A tactic with a bug: `run(tactic, out, ins, params, workspace)` in place of its own."""

    def __init__(self, tactic: Any, run: Callable[..., None]) -> None:
        self._tactic, self._run = tactic, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tactic, name)

    def run(self, out: Any, ins: Any, params: Any, workspace: Any) -> None:
        self._run(Writing(self._tactic), out, ins, params, workspace)


class Writing:
    """A tactic that writes to `out` whatever it would return."""

    def __init__(self, tactic: Any) -> None:
        self._tactic = tactic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tactic, name)

    def run(self, out: Any, ins: Any, params: Any, workspace: Any) -> None:
        for name, value in (self._tactic.run(out, ins, params, workspace) or {}).items():
            out[name].copy_(value)


def spoil(monkeypatch: pytest.MonkeyPatch, op: str, run: Callable[..., None]) -> None:
    """Plant a bug in every tactic of an op."""
    healthy = registry.tactic

    def tactic(asked: str, name: str) -> Any:
        found = healthy(asked, name)
        return Spoilt(found, run) if asked == op else found

    monkeypatch.setattr(registry, "tactic", tactic)


def with_call(path: str, change: Callable[[Call], Call]) -> Callable[[Plan], Plan]:
    """A change of one call of a plan."""

    def apply(plan: Plan) -> Plan:
        assert any(call.path == path for call in plan.calls), [call.path for call in plan.calls]
        return replace(plan, calls=tuple(change(call) if call.path == path else call for call in plan.calls))

    return apply


def with_params(path: str, **params: Any) -> Callable[[Plan], Plan]:
    """A change of one call's parameters."""
    return with_call(path, lambda call: replace(call, params={**call.params, **params}))


def with_bytes(source: Path, folder: Path, vocab: int) -> Path:
    """A checkpoint that comes without a tokenizer, copied, with the byte tokenizer beside it."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "bytes.json").write_text(json.dumps({"vocab_size": vocab}))
    return folder
