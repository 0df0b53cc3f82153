"""A planted bug is found and named; a healthy engine is never accused.

Bugs are planted in the engine (its digests made consistent, so that only comparing can tell) and in the
code. Most are looked for twice: with everything, and with the numeric levels alone, which know neither
the plan's numbers nor the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.plan import Call, Plan
from allotrope.build import build
from allotrope.cli import main
from allotrope.models import family as families
from allotrope.models import lower
from allotrope.models.family import all_families
from allotrope.verify.session import Question, Result, verify
from allotrope.verify.verdict import DEGRADED, IDENTICAL, WITHIN, default_requirement, enough
from tests.tiny import FAMILIES, KINDS
from tests.verifying import PLAIN, Forge, checkpoint, spoil, with_call, with_params

pytestmark = pytest.mark.usefixtures("one_thread")

NUMERIC = ("layers", "logits", "tokens")
ALL = ("preflight", *NUMERIC)
DTYPES = ("fp32", "bf16", "fp16")


def asked(path: Path, levels: tuple[str, ...] = ALL) -> Result:
    return verify(path, Question(levels=levels, locate=True, new_tokens=8))


def passes(result: Result) -> bool:
    return enough(result.findings.verdict, default_requirement(result.findings.dtype))


def assert_named(result: Result, path: str, op: str) -> None:
    located = result.findings.located
    assert not passes(result), result.findings.verdict
    assert located is not None and (located.path, located.op) == (path, op), located
    assert path.startswith(located.block) and located.detail


def same(plan: Plan) -> Plan:
    return plan


def without_bias(call: Call) -> Call:
    return replace(call, ins={name: slot for name, slot in call.ins.items() if name != "bias"})


def heads_swapped(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Heads of eight channels: the first two change places."""
    return np.concatenate((weight[8:16], weight[:8], weight[16:]))


def other_base(plan: Plan) -> Plan:
    plan = with_params("blocks.1.attn.q_rotary", base=12_000.0)(plan)
    return with_params("blocks.1.attn.k_rotary", base=12_000.0)(plan)


@dataclass(frozen=True)
class Plant:
    """A bug in an engine, and what must be named. `numeric`: the dtypes whose noise does not hide it."""

    family: str
    path: str
    op: str
    plan: Callable[[Plan], Plan] = same
    slots: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    numeric: tuple[str, ...] = DTYPES


PLANTS = {
    "transposed weight": Plant(
        "llama", "blocks.1.attn.o", "linear", slots={"blocks.1.attn.o.weight": np.transpose}, dtypes=DTYPES
    ),
    "transposed part of a fused weight": Plant(
        "llama", "blocks.1.attn.v", "linear", slots={"blocks.1.attn.v.weight": np.transpose}
    ),
    "dropped bias": Plant(
        "gpt2", "blocks.1.mlp.up", "linear", plan=with_call("blocks.1.mlp.up", without_bias), dtypes=DTYPES
    ),
    "rope base": Plant("llama", "blocks.1.attn.q_rotary", "rotary", plan=other_base, dtypes=DTYPES),
    "norm epsilon": Plant(
        "llama",
        "blocks.1.mlp.norm",
        "rmsnorm",
        plan=with_params("blocks.1.mlp.norm", eps=1e-4),
        dtypes=DTYPES,
        numeric=("fp32",),
    ),
    "layer norm epsilon": Plant(
        "gpt2",
        "blocks.2.attn.norm",
        "layernorm",
        plan=with_params("blocks.2.attn.norm", eps=1e-4),
        numeric=("fp32",),
    ),
    "permuted heads": Plant(
        "llama", "blocks.2.attn.q", "linear", slots={"blocks.2.attn.q.weight": heads_swapped}, dtypes=DTYPES
    ),
    "attention scale": Plant(
        "opt", "blocks.1.attn.attention", "attention", plan=with_params("blocks.1.attn.attention", scale=0.25)
    ),
    "window": Plant(
        "mistral", "blocks.0.attn.attention", "attention", plan=with_params("blocks.0.attn.attention", window=8)
    ),
    "position offset": Plant("opt", "embed.positions", "add_positions", plan=with_params("embed.positions", offset=1)),
    "activation": Plant("gpt2", "blocks.1.mlp.act", "activation", plan=with_params("blocks.1.mlp.act", kind="silu")),
    "embedding": Plant("gpt2", "embed", "embed", slots={"embed.weight": lambda table: np.roll(table, 1, axis=0)}),
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, plant in PLANTS.items() for dtype in plant.dtypes])
def test_a_bug_in_the_engine_is_named(forge: Forge, name: str, dtype: str) -> None:
    plant = PLANTS[name]
    bad = forge.planted(forge.built(plant.family, dtype, PLAIN), plan=plant.plan, slots=plant.slots)
    result = asked(bad)
    assert_named(result, plant.path, plant.op)
    assert result.findings.verdict == DEGRADED
    if dtype in plant.numeric:
        assert_named(asked(bad, NUMERIC), plant.path, plant.op)


def heads_remapped(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """Query head h reads key-value head h % kv_heads, as if heads were dealt out in turn."""
    heads, kv_heads = params["heads"], params["kv_heads"]
    order = torch.arange(heads).reshape(-1, kv_heads).T.reshape(-1)

    def dealt(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), heads, -1)[:, order].reshape(x.shape)

    tactic.run(out, {**ins, "q": dealt(ins["q"], order)}, params, workspace)
    out["out"].copy_(dealt(out["out"].clone(), order.argsort()))


def decode_only(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """Right for prompts; in a decode step the newest key is left out of the mean."""
    tactic.run(out, ins, params, workspace)
    if len(out["out"]) == len(ins["row_first"]):
        out["out"].mul_(1.25)


def values_shifted(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    tactic.run(out, {**ins, "v": ins["v"].roll(1, 0)}, params, workspace)


def base_off(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    tactic.run(out, ins, {**params, "base": params["base"] * 1.2}, workspace)


def epsilon_off(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    tactic.run(out, ins, {**params, "eps": 1e-4}, workspace)


def bias_ignored(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    tactic.run(out, {**ins, "bias": torch.zeros_like(ins["bias"])} if "bias" in ins else ins, params, workspace)


# name: (family, op spoilt, how, the path that must be named, dtypes)
SPOILT: dict[str, tuple[str, str, Callable[..., None], str, tuple[str, ...]]] = {
    "head mapping": ("decicoder", "attention", heads_remapped, "blocks.0.attn.attention", DTYPES),
    "decode only": ("llama", "attention", decode_only, "blocks.0.attn.attention", ("fp32", "bf16")),
    "cache": ("llama", "kv_write", values_shifted, "blocks.0.attn.kv_write.v", ("fp32", "bf16")),
    "rope base": ("llama", "rotary", base_off, "blocks.0.attn.q_rotary", DTYPES),
    "norm epsilon": ("llama", "rmsnorm", epsilon_off, "blocks.0.attn.norm", ("fp32",)),
    "bias": ("gpt2", "linear", bias_ignored, "blocks.0.attn.q", ("fp32", "bf16")),
}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, spec in SPOILT.items() for dtype in spec[4]])
def test_a_bug_in_the_code_is_named(forge: Forge, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    """The engine and its numbers are right: only the walk can tell."""
    family, op, run, path, _ = SPOILT[name]
    engine = forge.built(family, dtype, PLAIN)
    spoil(monkeypatch, op, run)
    result = asked(engine)
    assert result.findings.preflight is not None and result.findings.preflight.ok
    assert_named(result, path, op)


def test_a_bug_in_the_lowering_is_named(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built wrong from the start, so that the builder's own checks agree with it."""
    healthy = lower._rotate

    def wrong(draft: Any, path: str, spec: Any, *rest: Any) -> str:
        return healthy(draft, path, replace(spec, base=500.0) if path.startswith("blocks.1") else spec, *rest)

    monkeypatch.setattr(lower, "_rotate", wrong)
    out = forge.new("lowered")
    build(str(checkpoint("llama", forge.new("llama"))), out, device="cpu", dtype="fp32", tune="off", without=PLAIN)
    for levels in (ALL, NUMERIC):
        assert_named(asked(out, levels), "blocks.1.attn.q_rotary", "rotary")


def test_a_bug_in_a_family_is_named(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A square matrix that the family forgets to transpose: builder and weight check are misled alike."""

    def forgetful(part: families.Module) -> families.Module:
        return replace(part, transposed=False) if part.name == "attn.c_proj" else part

    wrong = tuple(
        replace(family, inner=tuple(map(forgetful, family.inner))) if family.name == "gpt2" else family
        for family in all_families()
    )
    monkeypatch.setattr(families, "all_families", lambda: wrong)
    out = forge.new("family")
    build(str(checkpoint("gpt2", forge.new("gpt2"))), out, device="cpu", dtype="fp32", tune="off", without=PLAIN)
    result = asked(out)
    assert result.findings.preflight is not None and result.findings.preflight.ok
    assert_named(result, "blocks.0.attn.o", "linear")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_engine_is_not_accused(forge: Forge, family: str, dtype: str) -> None:
    result = asked(forge.reseeded(family, dtype, seed=1))
    assert result.findings.verdict == (IDENTICAL if dtype == "fp32" else WITHIN)
    assert result.findings.located is None and passes(result)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_engine_is_not_accused_by_chance(forge: Forge, kind: str, dtype: str, seed: int) -> None:
    result = verify(forge.reseeded(kind, dtype, seed), Question(locate=True, seed=seed))
    assert result.findings.verdict == (IDENTICAL if dtype == "fp32" else WITHIN)
    assert result.findings.located is None


FIVE = ("transposed weight", "dropped bias", "rope base", "norm epsilon", "permuted heads")


@pytest.mark.parametrize("arguments", [(), ("--locate",)], ids=["plain", "locate"])
@pytest.mark.parametrize("name", [*FIVE, "layer norm epsilon"])
def test_the_command_exits_3_with_and_without_locate(
    forge: Forge, capsys: pytest.CaptureFixture[str], name: str, arguments: tuple[str, ...]
) -> None:
    plant = PLANTS[name]
    bad = forge.planted(forge.built(plant.family, without=PLAIN), plan=plant.plan, slots=plant.slots)
    assert main(["verify", str(bad), "--json", "--quiet", "--new-tokens", "4", *arguments]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["located"]["path"], found["located"]["op"]) == (plant.path, plant.op)
    assert found["verdict"] == DEGRADED and not found["passed"]


def test_the_command_exits_3_and_names_the_place(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    bad = forge.planted(forge.built("llama", without=PLAIN), slots={"blocks.1.attn.o.weight": np.transpose})
    assert main(["verify", str(bad), "--locate", "--json", "--quiet"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == found["implementation"] == DEGRADED and found["cost"] is None
    assert (found["located"]["block"], found["located"]["op"]) == ("blocks.1", "linear")
    assert found["located"]["path"] == "blocks.1.attn.o"
    assert found["required"] == IDENTICAL and not found["passed"]
