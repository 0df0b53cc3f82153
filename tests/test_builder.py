"""The builder: wrong tactics are refused, slow ones lose, and the plan shows exactly what was asked for."""

from __future__ import annotations

import json
import struct
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Call, Plan
from allotrope.build import build, cached
from allotrope.errors import BuildError, UsageError
from allotrope.hw.device import Device
from allotrope.models.model import open_model
from allotrope.ops import registry
from allotrope.ops.activation import via_torch
from allotrope.ops.contract import Array, Problem, Scalar
from allotrope.ops.tactic import REFERENCE

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 99,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "activation_function": "gelu",
    "do_layer_norm_before": True,
    "ffn_dim": 64,
    "hidden_size": 32,
    "max_position_embeddings": 62,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "torch_dtype": "float32",
    "vocab_size": 99,
    "word_embed_proj_dim": 32,
}
# Choosing call by call is what is tested here; that the native core takes all or nothing, in test_native_build.py.
QUICK: dict[str, Any] = {"device": "cpu", "tune": "off", "threads": 1, "executor": "eager"}


def shape(folder: Path, config: Mapping[str, Any] = LLAMA) -> str:
    path = folder / "shape.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return f"random:{path}"


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """A checkpoint on disk, written here by hand."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, at = {}, 0
    for name, array in tensors.items():
        kind = {"float32": "F32", "float16": "F16"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(folder)


def random_tensors(ref: str) -> dict[str, np.ndarray[Any, Any]]:
    checkpoint = open_model(ref).checkpoint
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def choice(evidence: Mapping[str, Any], op: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(entry for entry in evidence["choices"] if entry["op"] == op)
    return found


def tactics_of(plan: Plan, op: str) -> set[str]:
    return {name for call in plan.calls if call.op == op for _, name in call.tactics}


@dataclass(frozen=True)
class Planted:
    """An activation tactic under test: computes silu by the reference, then does `harm`."""

    harm: Callable[[Array, Array], None]
    name: str = "torch_planted"
    op: str = "activation"
    version: int = 1
    capturable: bool = True

    def packings(self) -> Mapping[str, str]:
        return {}

    def why_not(self, problem: Problem, device: Device) -> str | None:
        return None

    def row_class(self, problem: Problem, device: Device) -> str | None:
        return "torch_planted"

    def workspace(self, problem: Problem, device: Device) -> int:
        return 0

    def run(
        self, out: Mapping[str, Array], ins: Mapping[str, Array], params: Mapping[str, Scalar], workspace: Array | None
    ) -> None:
        self.harm(out["out"], ins["x"])


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


def unwritten(out: torch.Tensor, x: torch.Tensor) -> None:
    out[:, :-1] = gelu(x)[:, :-1]


def slow(out: torch.Tensor, x: torch.Tensor) -> None:
    time.sleep(2e-3)
    out.copy_(gelu(x))


def fail(out: torch.Tensor, x: torch.Tensor) -> None:
    raise RuntimeError("the library says no")


def depends_on_company(out: torch.Tensor, x: torch.Tensor) -> None:
    out.copy_(gelu(x) * (1 + 2.0**-23 * (x.shape[0] > 8)))


HARMFUL: dict[str, tuple[Callable[[Array, Array], None], str]] = {
    "wrong": (lambda out, x: out.copy_(x.clamp(min=0)), "wrong: out: its RMS error"),
    "slightly wrong": (lambda out, x: out.copy_(gelu(x) * (1 + 1e-4)), "wrong: out: its"),
    "nan": (lambda out, x: out.copy_(gelu(x)).__setitem__((0, 0), float("nan")), "is NaN or was left unwritten"),
    "unwritten": (unwritten, "is NaN or was left unwritten"),
    "changes its input": (lambda out, x: out.copy_(gelu(x)).add_(x.zero_()), "it changed its input x"),
    "raises": (fail, "it raised RuntimeError: the library says no"),
}


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Planted], None]:
    """Put a tactic first in the listing, where only its faults can keep it from being chosen."""

    def put(tactic: Planted) -> None:
        monkeypatch.setattr(via_torch, "TACTICS", (tactic, *via_torch.TACTICS))
        forget()

    def forget() -> None:
        registry.tactics.cache_clear()
        registry.tactic.cache_clear()
        registry._tactics_of.cache_clear()

    yield put
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(("harm", "tune"), [*((harm, "off") for harm in HARMFUL), ("wrong", "fast")])
def test_a_harmful_tactic_is_refused_with_its_error(
    tmp_path: Path, plant: Callable[[Planted], None], harm: str, tune: str
) -> None:
    plant(Planted(HARMFUL[harm][0]))
    built = build(shape(tmp_path, OPT), tmp_path / "e", **QUICK | {"tune": tune})
    found = choice(built.manifest.evidence, "activation")
    assert "torch_planted" not in tactics_of(built.manifest.plan, "activation")
    for bucket in found["buckets"]:
        (reason,) = [entry["reason"] for entry in bucket["refused"] if entry["tactic"] == "torch_planted"]
        assert HARMFUL[harm][1] in reason


def test_a_slow_tactic_is_never_chosen(tmp_path: Path, plant: Callable[[Planted], None]) -> None:
    plant(Planted(slow))
    built = build(shape(tmp_path, OPT), tmp_path / "e", **QUICK | {"tune": "fast"})
    found = choice(built.manifest.evidence, "activation")
    assert "torch_planted" not in tactics_of(built.manifest.plan, "activation")
    for bucket in found["buckets"]:
        (entry,) = [entry for entry in bucket["runners_up"] if entry["tactic"] == "torch_planted"]
        assert entry["seconds"] > 1e-3 > bucket["seconds"]
    off = build(shape(tmp_path, OPT), tmp_path / "off", **QUICK | {"allow_batch_variance": True})
    assert tactics_of(off.manifest.plan, "activation") == {"torch_planted"}  # first in the listing, and right


@pytest.mark.parametrize("tune", ["fast", "off"])
def test_a_false_row_class_is_taken_away(tmp_path: Path, plant: Callable[[Planted], None], tune: str) -> None:
    """Whatever a tactic says of itself on some other machine, it is tried here, and what is given up is told."""
    others = (*(f"activation/{tactic.name}" for tactic in via_torch.TACTICS), "native")
    plant(Planted(depends_on_company))
    options = QUICK | {"tune": tune, "without": others}
    with pytest.raises(BuildError, match=r"no row class .* usable: torch_planted \(not of its row class here: .* bits"):
        build(shape(tmp_path, OPT), tmp_path / "e", **options)
    built = build(shape(tmp_path, OPT), tmp_path / "e", **options | {"allow_batch_variance": True}).manifest
    assert tactics_of(built.plan, "activation") == {"torch_planted"}
    assert "blocks.0.mlp.act" in built.evidence["batch_variance"]["calls_without_row_class"]


def test_two_builds_choose_the_same_and_reuse_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOTROPE_CACHE", str(tmp_path / "cache"))  # one in which nothing is known yet
    first = build(shape(tmp_path), tmp_path / "one", **QUICK | {"tune": "fast"})
    second = build(shape(tmp_path), tmp_path / "two", **QUICK | {"tune": "fast"})
    assert first.manifest.plan == second.manifest.plan
    assert first.manifest.evidence["choices"] == second.manifest.evidence["choices"]
    once, again = first.manifest.evidence["tuning"], second.manifest.evidence["tuning"]
    assert once["timed"] > 10 and once["kept"]
    assert (again["timed"], again["reused"]) == (0, once["timed"] + once["reused"])


def test_evidence_names_time_error_runners_up_and_refusals(tmp_path: Path) -> None:
    built = build(shape(tmp_path), tmp_path / "e", **QUICK | {"tune": "fast", "without": ("linear/torch_mm",)})
    evidence = json.loads((tmp_path / "e" / "engine.json").read_text(encoding="utf-8"))["evidence"]
    assert evidence == built.manifest.evidence
    found = choice(evidence, "linear")
    for bucket in found["buckets"]:
        assert bucket["seconds"] > 0 and 0 < bucket["error"] < 1e-5
        assert {"tactic": "torch_mm", "reason": "taken out with --without"} in bucket["refused"]
    assert evidence["checks"]["whole_model"]["ok"] and evidence["checks"]["whole_model"]["floor_rms"] > 0
    covered = [path for entry in evidence["choices"] for path in entry["paths"]]
    assert sorted(covered) == sorted(call.path for call in built.manifest.plan.calls)


def test_plan_reference_is_the_lowered_plan(tmp_path: Path) -> None:
    built = build(shape(tmp_path), tmp_path / "e", **QUICK | {"plan": "reference"})
    plan = built.manifest.plan
    assert plan.fusions == ()
    assert all(call.tactics == ((None, REFERENCE),) for call in plan.calls)
    assert len(built.manifest.evidence["batch_variance"]["calls_without_row_class"]) == len(plan.calls)


def differing(one: Plan, other: Plan) -> set[str]:
    """Paths of calls that differ."""

    def calls(plan: Plan) -> dict[str, Call]:
        return {call.path: call for call in plan.calls}

    a, b = calls(one), calls(other)
    return {path for path in a.keys() | b.keys() if a.get(path) != b.get(path)}


def test_without_changes_exactly_what_it_says(tmp_path: Path) -> None:
    ref = shape(tmp_path)
    best = build(ref, tmp_path / "best", **QUICK).manifest.plan
    assert best.fusions == ("qkv", "gate_up")
    split = build(ref, tmp_path / "split", **QUICK | {"without": "qkv"}).manifest.plan
    assert split.fusions == ("gate_up",)
    ends = (".qkv", ".q", ".k", ".v")
    assert {path.endswith(ends) for path in differing(best, split)} == {True}
    assert len(differing(best, split)) == 2 * 4
    used = next(iter(tactics_of(best, "rmsnorm")))
    other = build(ref, tmp_path / "other", **QUICK | {"without": (f"rmsnorm/{used}",)}).manifest.plan
    assert differing(best, other) == {call.path for call in best.calls if call.op == "rmsnorm"}
    assert used not in tactics_of(other, "rmsnorm")
    assert replace(other, calls=()) == replace(best, calls=())


def test_unknown_parts_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no part 'qvk' .* parts are qkv, gate_up, .*linear/torch_mm"):
        build(shape(tmp_path), tmp_path / "e", **QUICK | {"without": "qvk"})
    with pytest.raises(UsageError, match="no option 'tuning'"):
        build(shape(tmp_path), tmp_path / "e", tuning="off")
    with pytest.raises(UsageError, match="max_len is 65, the model's positions end at 64"):
        build(shape(tmp_path), tmp_path / "e", **QUICK | {"max_len": 65})
    with pytest.raises(UsageError, match="tune is 'slow'; choose full, fast, off"):
        build(shape(tmp_path), tmp_path / "e", tune="slow")
    assert not (tmp_path / "e").exists()


def test_without_everything_is_an_error_with_reasons(tmp_path: Path) -> None:
    every = tuple(f"linear/{tactic.name}" for tactic in registry.tactics("linear"))
    with pytest.raises(
        BuildError, match=r"op linear: no tactic is usable .*taken out with --without.*--plan reference"
    ):
        build(shape(tmp_path), tmp_path / "e", **QUICK | {"without": every})
    tiles = tuple(name for name in every if "mm" not in name)
    with pytest.raises(BuildError, match="no row class serves all row counts; usable: torch_mm"):
        build(shape(tmp_path), tmp_path / "e", **QUICK | {"without": tiles})


def test_row_classes_by_default_and_what_variance_gives_up(tmp_path: Path) -> None:
    ref = shape(tmp_path)
    steady = build(ref, tmp_path / "steady", **QUICK).manifest
    assert all(entry["row_class"] for entry in steady.evidence["choices"])
    assert steady.evidence["batch_variance"] == {"allowed": False, "calls_without_row_class": []}
    tiles = tuple(f"linear/{tactic.name}" for tactic in registry.tactics("linear") if "mm" not in tactic.name)
    options = QUICK | {"allow_batch_variance": True, "without": tiles}
    varying = build(ref, tmp_path / "varying", **options).manifest
    given_up = set(varying.evidence["batch_variance"]["calls_without_row_class"])
    library = {call.path for call in varying.plan.calls if call.op == "linear" and "torch_mm" in str(call.tactics)}
    assert library and given_up >= library
    assert not any("torch_mm" in str(call.tactics) for call in steady.plan.calls)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_sixteen_bits_on_a_cpu(tmp_path: Path, dtype: str) -> None:
    built = build(shape(tmp_path), tmp_path / "e", **QUICK | {"dtype": dtype})
    opened = open_engine(tmp_path / "e", check_digests=True)
    assert opened.manifest.dtype == dtype == opened.dtype("embed.weight")
    assert built.manifest.evidence["checks"]["whole_model"]["ok"]


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    plan = build(shape(tmp_path), tmp_path / "e", **QUICK | {"tune": "fast"}).manifest.plan
    assert "head.weight" not in plan.weights and plan.weights["embed.weight"].packing == "rows"


def test_wiring_mistakes_are_caught_by_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op is right, and yet: columns of a fused buffer that are swapped."""
    from allotrope.build import fuse

    right = fuse.apply

    def swapped(plan: Plan, fusion: fuse.Fusion) -> Plan:
        made = right(plan, fusion)
        if fusion.name != "gate_up":
            return made
        gate, up = made.buffers["gate"], made.buffers["up"]
        return replace(made, buffers={**made.buffers, "gate": up, "up": gate})

    monkeypatch.setattr(fuse, "apply", swapped)
    with pytest.raises(BuildError, match="the whole model differs from its reference plan"):
        build(shape(tmp_path), tmp_path / "e", **QUICK)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_weights_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    tensors = random_tensors(shape(tmp_path))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    ref = write_checkpoint(tmp_path / "c", LLAMA, tensors)
    with monkeypatch.context() as early, pytest.raises(BuildError, match=rf"tensor {name} holds NaN or infinity"):
        early.setattr("allotrope.build.builder._select", None)  # so early that nothing has been tuned
        build(ref, tmp_path / "e", **QUICK)
    assert not (tmp_path / "e").exists()
    with pytest.warns(UserWarning, match=f"tensor {name} holds NaN"):
        build(ref, tmp_path / "e", **QUICK | {"allow_nan": True})
    assert (tmp_path / "e" / "engine.json").exists()


def test_what_does_not_fit_fp16_is_refused_by_name(tmp_path: Path) -> None:
    tensors = random_tensors(shape(tmp_path))
    tensors["model.norm.weight"][0] = 1e6
    ref = write_checkpoint(tmp_path / "c", LLAMA, tensors)
    with pytest.raises(BuildError, match=r"tensor model.norm.weight does not fit fp16.*--dtype bf16 or fp32"):
        build(ref, tmp_path / "e", **QUICK | {"dtype": "fp16"})


def test_all_zero_biases_are_dropped_and_recorded(tmp_path: Path) -> None:
    tensors = random_tensors(shape(tmp_path, OPT))
    zeroed = {name: array * 0 if ".bias" in name and "norm" not in name else array for name, array in tensors.items()}
    built = build(write_checkpoint(tmp_path / "zero", OPT, zeroed), tmp_path / "e0", **QUICK).manifest
    assert not any("bias" in call.ins for call in built.plan.calls if call.op == "linear")
    assert "blocks.*.mlp.up.bias" in built.evidence["dropped_zero_biases"]
    assert not any(name.endswith("q.bias") for name in built.plan.weights)
    only_k = {name: array * 0 if name.endswith("k_proj.bias") else array for name, array in tensors.items()}
    kept = build(write_checkpoint(tmp_path / "k", OPT, only_k), tmp_path / "e1", **QUICK).manifest
    assert kept.evidence["dropped_zero_biases"] == [] and kept.plan.fusions == ("qkv",)


def test_cached_builds_once_and_anew_when_something_changed(tmp_path: Path) -> None:
    ref = write_checkpoint(tmp_path / "c", LLAMA, random_tensors(shape(tmp_path)))
    first = cached(ref, **QUICK)
    stamp = (first / "engine.json").stat().st_mtime_ns
    assert cached(ref, **QUICK) == first and (first / "engine.json").stat().st_mtime_ns == stamp
    assert cached(ref, **QUICK | {"dtype": "bf16"}) != first
    data = (tmp_path / "c" / "model.safetensors").read_bytes()
    (tmp_path / "c" / "model.safetensors").write_bytes(data)  # touched: size equal, time not
    assert cached(ref, **QUICK) != first
    next((first / "weights").iterdir()).write_bytes(b"damaged")
    (tmp_path / "c" / "model.safetensors").write_bytes(data)
    fresh = cached(ref, **QUICK)
    next((fresh / "weights").iterdir()).write_bytes(b"damaged")
    assert cached(ref, **QUICK) == fresh
    open_engine(fresh, check_digests=True)


def test_no_warning_in_a_quiet_build(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = build(shape(tmp_path), tmp_path / "e", **QUICK)
    assert open_engine(built.path).manifest.plan == built.manifest.plan
