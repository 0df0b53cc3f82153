"""Fusions for a GPU, tried on a CPU: the same model, fewer calls, the residual stream where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allotrope.artifact.dataflow import check_flow
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Buffer, Plan
from allotrope.build import build, fuse
from allotrope.build.stage import Stage
from allotrope.models.lower import lower
from allotrope.models.recipe import Recipe
from allotrope.ops import check, registry
from allotrope.ops.contract import Problem
from allotrope.ops.tactic import REFERENCE
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.step import WANT_ALL, StepInput
from allotrope.verify.drive import block_ends
from allotrope.verify.session import Question, verify
from tests.engines import GPT, LLAMA, MemoryEngine, random_weights
from tests.test_eager import one_step
from tests.tiny import KINDS
from tests.verifying import CPU, PLAIN, Forge, checkpoint, torch_tactics

pytestmark = pytest.mark.usefixtures("one_thread")


def fused(plan: Plan, without: tuple[str, ...] = ()) -> Plan:
    """All fusions that can be applied, every call on its reference or, where it has none in the plan's dtype, as is."""
    for fusion in fuse.FUSIONS:
        if fusion.name not in without and fuse.why_not(plan, fusion) is None:
            plan = fuse.apply(plan, fusion)
    return plan


def logits(engine: Any, plan: Plan) -> torch.Tensor:
    steps: list[StepInput] = [one_step([5, 6, 7, 8, 9, 10, 11], WANT_ALL)]
    decode = one_step([12], WANT_ALL)
    steps.append(replace(decode, first=decode.first + 7, pages=steps[0].pages, prompt_lens=steps[0].prompt_lens))
    executor = EagerExecutor(
        engine, device=CPU, plan=plan, pages=20, page_size=4, max_tokens=16, threads=1, poison=True
    )
    return torch.cat([executor.run(step).logits.clone() for step in steps])


def sound(well: bool, problem: str) -> None:
    assert well, problem


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_computes_the_same(kind: str, forge: Forge) -> None:
    engine = open_engine(forge.built(kind, without=PLAIN), device=CPU)
    plain = engine.manifest.plan.with_tactics(((None, REFERENCE),))
    plan = fused(plain)
    assert "residual" in plan.fusions and not any(call.op == "add" for call in plan.calls)
    normed = fused(plain, without=("residual",))
    assert "add_norm" in normed.fusions and torch.equal(logits(engine, normed), logits(engine, plain))
    rotated = any(call.op == "rotary" for call in plan.calls)
    assert ("qk_rotary" in plan.fusions) == (rotated and not any(call.path.endswith("q_norm") for call in plan.calls))
    ungated = any(call.op == "activation" for call in plain.calls)
    assert ("activated" in plan.fusions) == ungated and not any(call.op == "activation" for call in plan.calls)
    assert len(plan.buffers) < len(plain.buffers) + 2
    assert list(block_ends(plan)) == list(block_ends(plain)) == list(block_ends(normed))
    assert torch.equal(logits(engine, plan), logits(engine, plain))
    assert Plan.from_json(plan.to_json()) == plan
    for made in (plan, normed):
        check_flow(made, sound)


@pytest.mark.parametrize("recipe", [LLAMA, GPT], ids=["llama", "gpt"])
def test_a_blocks_end_is_where_its_result_lies(recipe: Recipe) -> None:
    """In place, and where one way down alone is joint with its sum: then the stream ends in another buffer."""
    plain = lower(recipe)
    coded = [call.path for call in plain.calls if call.op == "linear" and call.path != "blocks.0.mlp.down"]
    calls = (replace(call, op="linear_codes") if call.path in coded else call for call in plain.calls)
    mixed, embedding = replace(plain, calls=tuple(calls)), "embed.positions" if recipe.positions else "embed"
    for plan in (plain, fused(plain), fused(plain, without=("residual",)), fused(mixed)):
        found = block_ends(plan)
        assert {block: path for block, (path, _) in found.items()} == {
            "embed": embedding,
            "blocks.0": "blocks.0.mlp.add",
            "blocks.1": "blocks.1.mlp.add",
        }
        assert {operand for _, operand in found.values()} == {"out"}
    down = next(call for call in fused(mixed).calls if call.path == "blocks.0.mlp.add")
    assert down.op == "linear_add" and down.outs["out"] != f"b:{plain.hidden}"


def test_torchs_own_tactics_in_the_fused_plan() -> None:
    """In place, with and without biases: what the references compute, to rounding."""
    for recipe in (LLAMA, GPT):
        plan = fused(lower(recipe))
        names = {"linear_add": "torch_mm", "rotary": "torch_tables"}
        torched = replace(
            plan,
            calls=tuple(replace(call, tactics=((None, names.get(call.op, REFERENCE)),)) for call in plan.calls),
        )
        engine = MemoryEngine(plan, random_weights(recipe))
        found, truth = logits(engine, torched), logits(engine, plan)
        assert (found - truth).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_adding_in_the_product_passes_the_numerics_policy(bias: bool, dtype: str) -> None:
    present = frozenset({"bias"}) if bias else frozenset()
    for rows in (1, 9):
        problem = Problem("linear_add", {"rows": rows, "in": 80, "out": 48}, {}, dtype, present)
        for tactic in torch_tactics("linear_add"):
            assert check.check(tactic, problem, CPU, seed=2).reason is None
            assert tactic.row_class(problem, CPU) is None
            contract = registry.contract("linear_add")
            ins = check.rounded(contract, problem, contract.make_inputs(problem, 0))
            ins["weight"] = ins["weight"].T.contiguous() if tactic.name.endswith("cols") else ins["weight"]
            apart, own = torch.empty_like(ins["residual"]), ins["residual"].clone()
            tactic.run({"out": apart}, ins, {}, None)
            tactic.run({"out": own}, {**ins, "residual": own}, {}, None)
            assert torch.equal(apart, own)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_adding_before_the_norm_passes_the_numerics_policy(norm: str, dtype: str) -> None:
    for present in (frozenset[str](), frozenset({"weight"}), frozenset({"weight", "bias"})):
        if norm == "rms" and "bias" in present:
            continue
        problem = Problem("add_norm", {"rows": 9, "width": 48}, {"norm": norm, "eps": 1e-5}, dtype, present)
        (tactic, compiled) = torch_tactics("add_norm")
        assert check.check(tactic, problem, CPU, seed=2).reason is None
        if tactic.row_class(problem, CPU) is not None:
            assert check.check_rows(tactic, problem, CPU, seed=2, most=64) is None
        assert "of which there are none here" in str(compiled.why_not(problem, CPU))
    assert "no norm 'group'" in str(tactic.why_not(replace(problem, params={"norm": "group", "eps": 1e-5}), CPU))


def test_a_large_problem_is_staged_at_its_true_size() -> None:
    """Of a large weight only a part is drawn; what has one of its axes is repeated with it."""
    axes = {"rows": 2, "in": 300, "out": 700}
    problem = Problem("linear_add", axes, {}, "fp32", frozenset({"bias"}))
    stage = Stage.of(problem, CPU, 0, most_values=300 * 64)
    shapes = {name: tuple(value.shape) for name, value in stage.ins.items()}
    assert shapes == {"x": (2, 300), "weight": (700, 300), "bias": (700,), "residual": (2, 700)}
    stage.call(registry.tactic("linear_add", "torch_mm"))(0)


@pytest.mark.parametrize(("op", "axes"), [("linear_add", {"in": 80, "out": 48}), ("add_norm", {"width": 48})])
def test_what_a_plan_does_in_place_is_tried_in_place(op: str, axes: dict[str, int]) -> None:
    """Timed elsewhere it would copy the residual first, which no step does; and it must be right where it runs."""
    healthy: Any = registry.tactic(op, "torch_mm" if op == "linear_add" else "torch")
    params = {"norm": "layer", "eps": 1e-5} if op == "add_norm" else {}
    problem, shared = Problem(op, {"rows": 5, **axes}, params, "fp32"), list[bool]()

    def watched(out: Any, ins: Any, params: Any, workspace: Any) -> Any:
        shared.append(out["out"].data_ptr() == ins["residual"].data_ptr())
        return healthy.run(out, ins, params, workspace)

    def early(out: Any, ins: Any, params: Any, workspace: Any) -> Any:
        out["out"].zero_()  # what it has not read yet, where that lies there
        return healthy.run(out, ins, params, workspace)

    Stage.of(problem, CPU, 0, most_values=1 << 20).call(replace(healthy, run=watched))(0)
    assert shared == [True]
    assert check.check(replace(healthy, run=watched), problem, CPU, seed=1).reason is None
    assert sorted(shared[1:]) == [False, True]
    assert not check.check(replace(healthy, run=early), problem, CPU, seed=1).ok


def test_activating_in_the_product_says_why_not() -> None:
    axes, bias = {"rows": 1, "in": 80, "out": 48}, frozenset({"bias"})
    problem = Problem("linear_activation", axes, {"kind": "gelu_tanh"}, "fp16", bias)
    gpu = replace(CPU, kind="cuda")
    *products, plain = torch_tactics("linear_activation")
    for tactic in products:
        assert tactic.why_not(problem, gpu) is None and tactic.row_class(problem, gpu) is None
        assert "with another gelu" in str(tactic.why_not(problem, CPU))
        assert "takes a bias" in str(tactic.why_not(replace(problem, present=frozenset()), gpu))
        assert "not silu" in str(tactic.why_not(replace(problem, params={"kind": "silu"}), gpu))
    for present in (frozenset[str](), bias):
        for kind in ("silu", "gelu_tanh"):
            given = replace(problem, axes={**axes, "rows": 5}, params={"kind": kind}, present=present)
            for dtype in ("fp32", "fp16", "bf16"):
                assert check.check(plain, replace(given, dtype=dtype), CPU, seed=1).reason is None
    assert "no activation 'tan'" in str(plain.why_not(replace(problem, params={"kind": "tan"}), CPU))


def test_what_is_activated_and_read_elsewhere_is_left() -> None:
    plan, activated = lower(GPT), fuse.by_name("activated")
    assert fuse.why_not(plan, activated) is None
    calls = tuple(
        replace(call, ins={**call.ins, "b": "b:up"}) if call.path == "blocks.1.mlp.add" else call for call in plan.calls
    )
    assert "what blocks.1.mlp.up gives has another reader" in str(fuse.why_not(replace(plan, calls=calls), activated))


def test_what_cannot_be_added_in_place_is_left() -> None:
    """The old value of the residual stream is wanted later; or what is added is wanted elsewhere, too."""
    plan, residual = fuse.apply(lower(GPT), fuse.by_name("qkv")), fuse.by_name("residual")
    assert fuse.why_not(plan, residual) is None
    calls = list(plan.calls)
    at = next(i for i, call in enumerate(calls) if call.path == "blocks.0.mlp.norm")
    for slot in ("b:x", "b:attn_out"):
        late = replace(
            plan, calls=(*calls[:at], replace(calls[at], ins={**calls[at].ins, "x": slot}), *calls[at + 1 :])
        )
        assert fuse.why_not(late, residual) == "blocks.0.mlp.norm: it would read what has been overwritten"
    columns = {**plan.buffers, "attn_out": Buffer("tokens", 32, of="qkv")}
    assert "is part of another" in str(fuse.why_not(replace(plan, buffers=columns), residual))


def test_what_is_no_neighbour_is_not_rotated_together() -> None:
    plan, rotation = lower(LLAMA), fuse.by_name("qk_rotary")
    assert "no neighbouring columns" in str(fuse.why_not(plan, rotation))
    plan = fuse.apply(plan, fuse.by_name("qkv"))
    assert fuse.why_not(plan, rotation) is None
    other = tuple(
        replace(c, params={**c.params, "base": 5.0}) if c.path.endswith("1.attn.k_rotary") else c for c in plan.calls
    )
    assert "turn differently" in str(fuse.why_not(replace(plan, calls=other), rotation))


def test_on_a_cpu_they_are_not_tried(tmp_path: Path) -> None:
    built = build(str(checkpoint("llama", tmp_path / "c")), tmp_path / "e", device="cpu", tune="off", without=PLAIN)
    for name in ("qk_rotary", "residual"):
        assert built.manifest.evidence["fusions"][name] == ("not in: it saves kernel launches, and a cpu has none")
    assert built.manifest.evidence["executor"]["kind"] == "eager"


@pytest.mark.parametrize("tune", ["off", "fast"])
def test_built_for_graphs_all_that_decodes_can_be_recorded(tune: str, tmp_path: Path) -> None:
    source = str(checkpoint("llama-grouped", tmp_path / "c"))
    built = build(source, tmp_path / "e", device="cpu", tune=tune, executor="graph")
    assert built.manifest.evidence["executor"] == {"wanted": "graph", "kind": "graph", "graph_rows": 64} | {
        "not_native": "built for the graph executor"
    }
    attention = next(call for call in built.manifest.plan.calls if call.op == "attention")
    assert attention.tactics[0][1] == "torch_planned4" and attention.tactics[-1] == (None, "torch_splits4")
    assert built.manifest.options["executor"] == "graph"


def normed(plan: Plan) -> Plan:
    """Only sums and the norms behind them fused, by tactics that there are."""
    [fusion] = [fusion for fusion in fuse.FUSIONS if fusion.name == "add_norm"]
    plan = fuse.apply(plan, fusion)
    tactic = torch_tactics("add_norm")[0].name
    calls = (replace(call, tactics=((None, tactic),)) if call.op == "add_norm" else call for call in plan.calls)
    return replace(plan, calls=tuple(calls))


@pytest.mark.parametrize("kind", ["llama-linear", "opt", "opt-350m"])
def test_a_block_does_not_answer_for_a_norm_that_was_fused_to_the_one_before(kind: str, forge: Forge) -> None:
    """At a block's border the exact value is put in place of the engine's: the norm already made must see it, too."""
    asked = Question(levels=("layers",))
    apart = forge.reseeded(kind, "bf16", 1)
    plain = verify(apart, asked).findings.layers
    joint = verify(forge.planted(apart, plan=normed), asked).findings.layers
    assert plain is not None and joint is not None
    for before, after in zip(plain.rows, joint.rows, strict=True):
        assert after.injected.rms_rel_rms <= 1.1 * before.injected.rms_rel_rms, after.block


@pytest.mark.parametrize("path", ["blocks.0.mlp.add", "blocks.1.attn.add"])
def test_a_wrong_norm_is_named_though_it_is_fused(path: str, forge: Forge) -> None:
    """By its own path and in its own block, which for the norm behind a block's last sum is the next."""

    def wrong(plan: Plan) -> Plan:
        plan = normed(plan)
        calls = (replace(call, params=call.params | {"eps": 0.5}) if call.path == path else call for call in plan.calls)
        return replace(plan, calls=tuple(calls))

    for locate in (True, False):
        found = verify(
            forge.planted(forge.built("llama-linear", without=PLAIN), plan=wrong),
            Question(levels=("layers",), locate=locate),
        ).findings.located
        assert found is not None
        norm = "blocks.1.attn.norm" if path == "blocks.0.mlp.add" else "blocks.1.mlp.norm"
        assert (found.path, found.block) == (norm, "blocks.1")
