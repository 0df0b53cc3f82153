"""`verify` of engines that round activations, keys or values: a last bit moves a code, and yet no fault hides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Call, Plan, kv_path
from allotrope.models.model import open_model
from allotrope.ops import kv_codes
from allotrope.ops.rows import quantise_rows
from allotrope.ops.tactic import REFERENCE
from allotrope.verify.oracle import LOGITS, Probe, as_written
from allotrope.verify.original import oracle
from allotrope.verify.quantisers import Quantisers, rounded_kv, rounded_rows
from allotrope.verify.verdict import IDENTICAL, WITHIN
from tests.narrow_engines import Narrow, asked
from tests.tiny import FAMILIES
from tests.verifying import CPU, Forge, spoil

pytestmark = pytest.mark.usefixtures("one_thread")


def eight_bit(form: str) -> Callable[[Plan], Plan]:
    """The plan with its activations rounded, too."""

    def change(plan: Plan) -> Plan:
        def rounding(call: Call) -> Call:
            if call.op != "linear_codes":
                return call
            return replace(call, params={**call.params, "activations": form}, tactics=((None, REFERENCE),))

        return replace(plan, calls=tuple(rounding(call) for call in plan.calls))

    return change


@pytest.fixture(scope="module")
def rounding(narrow: Narrow, forge: Forge) -> Callable[..., Path]:
    """Engines that round everything: weights, activations, keys and values."""
    made: dict[tuple[str, str, str], Path] = {}

    def engine(kind: str, dtype: str = "fp32", form: str = "int8") -> Path:
        key = (kind, dtype, form)
        if key not in made:
            made[key] = forge.planted(narrow(kind, dtype, weights=form, kv=form), plan=eight_bit(form))
        return made[key]

    return engine


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_computes_what_its_codes_say(rounding: Any, kind: str, dtype: str) -> None:
    form = "fp8" if FAMILIES.index(kind) % 2 else "int8"
    found = asked(rounding(kind, dtype, form)).findings
    assert found.implementation == (IDENTICAL if dtype == "fp32" else WITHIN), (found.located, found.tokens)
    assert len(found.formats) == 2 and found.formats[0].endswith(f"weights {form} with {form} inputs")
    assert found.cost is not None and found.logits is not None
    assert found.logits.mean_kl < found.cost.figures.mean_kl


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("seed", range(3))
def test_no_engine_is_accused_by_chance(rounding: Any, form: str, seed: int) -> None:
    found = asked(rounding("llama", "fp32", form), seed=seed).findings
    assert found.implementation == IDENTICAL, (found.located, found.tokens)


def truncating(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """Codes of activations rounded towards zero."""
    rows = quantise_rows(ins["x"], str(params["activations"]))
    steps = (ins["x"].float() / rows.scales).trunc()
    tactic.run(out, {**ins, "x": (steps * rows.scales).to(ins["x"].dtype)}, params, workspace)


def scales_of_the_next_head(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """Keys are read with the scales of other heads."""
    heads, cache = int(params["kv_heads"]), ins["k_cache"].clone()
    cache[..., -4 * heads :] = cache[..., -4 * heads :].roll(4, -1)
    tactic.run(out, {**ins, "k_cache": cache}, params, workspace)


def a_step_too_wide(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """As if 126 were the top."""
    wide = ins["k"].float().unflatten(-1, (int(params["kv_heads"]), -1))
    tactic.run(out, {**ins, "k": (wide * (126 / 127)).flatten(-2).to(ins["k"].dtype)}, params, workspace)


def slightly_off(tactic: Any, out: Any, ins: Any, params: Any, workspace: Any) -> None:
    """A norm between two roundings is wrong by less than half a step of its codes."""
    tactic.run(out, ins, {**params, "eps": 1e-3}, workspace)


@pytest.mark.parametrize(
    ("op", "run", "path"),
    (
        ("linear_codes", truncating, "blocks.0.attn.q"),
        ("attention", scales_of_the_next_head, "blocks.0.attn.attention"),
        ("kv_write", a_step_too_wide, "blocks.0.attn.kv_write.k"),
        ("rmsnorm", slightly_off, "blocks.0.attn.norm"),
    ),
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_fault_is_named(
    rounding: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, op: str, run: Callable[..., None], path: str
) -> None:
    engine = rounding("llama", dtype)
    spoil(monkeypatch, op, run)
    found = asked(engine, ("layers",)).findings
    assert found.located is not None and (found.located.path, found.located.op) == (path, op)


def test_codes_are_the_same_in_every_precision_of_the_original() -> None:
    """An oracle of fp64 turns every fp32 into fp64, but not the divisions that define a code."""
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    found = quantise_rows(x, "int8")
    expected = found.codes.double() * found.scales.double()
    from allotrope.verify.oracle import _Double

    with _Double():
        assert x.float().dtype == torch.float64
        assert torch.equal(rounded_rows(x.double(), "int8"), expected)
        with as_written():
            assert x.float().dtype == torch.float32
    states = x.view(1, 50, 4, 16).transpose(1, 2)
    expected = kv_codes.fake(x.view(1, 50, 64), 4, "fp8").view(1, 50, 4, 16).transpose(1, 2)
    assert torch.equal(rounded_kv(states, "fp8"), expected)


def test_the_original_rounds_only_where_the_engine_does(rounding: Any) -> None:
    path = rounding("gpt2")
    engine = open_engine(path, device=CPU)
    model, plan = open_model(engine.manifest.source["path"]), engine.manifest.plan
    found = Quantisers(plan, model.family, model.recipe)
    assert {"0:key", "2:value", "transformer.h.1.mlp.c_fc:in"} <= found.probes.keys() and len(found.probes) == 3 * 6
    ids = [[1, 2, 3, 4, 5]]
    active = {"blocks.1.attn.k"}
    plain, some = oracle(model, "fp64", CPU), oracle(model, "fp64", CPU)
    found.install(some, lambda name: name in active)
    probes = {"q k v": Probe("transformer.h.1.attn.c_attn", "out"), "before": Probe("transformer.h.1", "in")}
    left, right = plain.walk(ids, probes), some.walk(ids, probes)
    assert torch.equal(left["before"], right["before"])
    differs = (left["q k v"] != right["q k v"]).any(0)
    assert not differs[:64].any() and differs[64:128].all() and not differs[128:].any()
    active.clear()
    assert torch.equal(plain.walk(ids, {})[LOGITS], some.walk(ids, {})[LOGITS])
    active.add(kv_path(2))
    assert not torch.equal(plain.walk(ids, {})[LOGITS], some.walk(ids, {})[LOGITS])


def test_keys_and_values_are_attributed_layer_by_layer(rounding: Any) -> None:
    found = asked(rounding("decicoder"), ("logits",), attribute=True).findings
    assert found.attribution is not None and found.cost is not None
    names = {module.module for module in found.attribution.modules}
    assert {f"blocks.{i}.attn.kv" for i in range(3)} < names and len(names) == 3 * 8
    assert found.attribution.whole == pytest.approx(found.cost.figures.mean_kl, rel=0.02)
